"""A file's fingerprint: a hash by which two machines know that they have the same file.

XXH3-128 of its size and its bytes. `sampled` hashes the head, the tail and blocks evenly spaced between them:
a few reads however large the file, and all of a small one. Two files that differ only between samples have
the same fingerprint; `full` hashes every byte. Only fingerprints of one kind are compared.
"""

from __future__ import annotations

import os
from typing import Final

import xxhash

from cortex.limits import FINGERPRINT_BLOCK_BYTES, FINGERPRINT_BLOCKS, MIB

_READ_BYTES: Final = 1 * MIB


def fingerprint(descriptor: int, size_bytes: int, full: bool = False) -> bytes:
    """Of the open file's first `size_bytes`. Raises OSError. A file that is cut short meanwhile has some
    fingerprint: whoever asks looks at its size and time afterwards."""
    hashed = xxhash.xxh3_128(b"%s %d\n" % (b"full" if full else b"sampled", size_bytes))
    if full or size_bytes <= FINGERPRINT_BLOCKS * FINGERPRINT_BLOCK_BYTES:
        for offset in range(0, size_bytes, _READ_BYTES):
            hashed.update(os.pread(descriptor, min(_READ_BYTES, size_bytes - offset), offset))
    else:
        last = size_bytes - FINGERPRINT_BLOCK_BYTES
        for block in range(FINGERPRINT_BLOCKS):
            offset = last * block // (FINGERPRINT_BLOCKS - 1)
            hashed.update(os.pread(descriptor, FINGERPRINT_BLOCK_BYTES, offset))
    return hashed.digest()


def fingerprint_of(path: str, size_bytes: int, full: bool = False) -> bytes:
    """Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fingerprint(descriptor, size_bytes, full)
    finally:
        os.close(descriptor)
