"""A client's side of what travels with a job: the files found, limited and hashed, then sent.

Folders are taken whole, in the order of their names, links to files followed. Of modules the compiled
remains (``__pycache__``) stay behind. Every file is read twice, for its hash and to be sent, and must be
the same both times.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from cortex.errors import BundleTooLarge, InputChanged, ProtocolError, Unreachable, UsageError
from cortex.job.bundle import NO_BUNDLE, Bundle, BundleFile, Kind, Package, name_problem
from cortex.job.travelling import module_name
from cortex.limits import ANSWER_S_MAX, BLOB_CHUNK_BYTES, BUNDLE_BYTES_MAX, BUNDLE_FILES_MAX
from cortex.units import format_bytes, format_count
from cortex.wire.messages import BlobsTaken, BlobsWanted, Message, OfferBlobs, PutBlob

M = TypeVar("M")
_LARGEST_SHOWN = 5
_CACHE = "__pycache__"


@dataclass(frozen=True)
class PackedBundle:
    bundle: Bundle = NO_BUNDLE
    sources: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 -> a file of the client that has these bytes."""

    def needing(self, packages: Iterable[Package]) -> PackedBundle:
        """The same, for code that imports these packages."""
        return replace(self, bundle=Bundle(self.bundle.files, tuple(packages)))


NOTHING_PACKED = PackedBundle()


@dataclass(frozen=True)
class _Found:
    kind: Kind
    name: str
    path: str
    size_bytes: int


def pack(
    files: Mapping[str, str], modules: Iterable[str], sources: Mapping[str, str] | None = None
) -> PackedBundle:
    """`files`: name -> path of a file or folder; `modules`: paths of .py files and package folders, all
    absolute; `sources`: further modules, as ``pkg/mod.py`` -> path. Raises UsageError for what cannot be
    taken, BundleTooLarge for what is too much."""
    found: dict[tuple[Kind, str], _Found] = {}
    for each in _find(files, modules, sources or {}):
        found.setdefault((each.kind, each.name), each)
        if len(found) > BUNDLE_FILES_MAX:
            raise BundleTooLarge(
                f"more than {format_count(BUNDLE_FILES_MAX)} files would travel with the job",
                cure="put them into one archive, or where every node can read them",
                details={"among them": each.path},
            )
    total_bytes = sum(each.size_bytes for each in found.values())
    if total_bytes > BUNDLE_BYTES_MAX:
        largest = sorted(found.values(), key=lambda each: -each.size_bytes)[:_LARGEST_SHOWN]
        raise BundleTooLarge(
            f"the job's files have {format_bytes(total_bytes)}: at most {format_bytes(BUNDLE_BYTES_MAX)}"
            " travel with a job",
            cure="put large files where every node can read them, and open them by their path",
            details={each.path: format_bytes(each.size_bytes) for each in largest},
        )
    entries: list[BundleFile] = []
    blobs: dict[str, str] = {}
    for each in found.values():
        sha256, size_bytes = _hash(each.path)
        entries.append(BundleFile(each.kind, each.name, sha256, size_bytes))
        blobs.setdefault(sha256, each.path)
    return PackedBundle(Bundle(tuple(entries)), blobs)


def upload(packed: PackedBundle, send: Callable[[Message], None], receive: Callable[[float], Any]) -> None:
    """Have every blob at the server, over the connection that the job is then submitted on.

    `receive(timeout_s)` gives the next message. Raises InputChanged for a file that is no more what it was
    when it was packed, and whatever the two raise.
    """
    blobs = packed.bundle.blobs()
    if not blobs:
        return
    send(OfferBlobs(blobs))
    wanted = _answer(receive, BlobsWanted)
    credit_bytes, stored = wanted.credit_bytes, not wanted.blobs
    for sha256 in wanted.blobs:
        for data, last in _chunks(packed.sources[sha256], sha256, blobs[sha256]):
            while len(data) > credit_bytes:
                taken = _answer(receive, BlobsTaken)
                credit_bytes += taken.credit_bytes
            send(PutBlob(sha256, data, last))
            credit_bytes -= len(data)
    while not stored:
        stored = _answer(receive, BlobsTaken).stored


def _answer(receive: Callable[[float], Any], kind: type[M]) -> M:
    try:
        said = receive(ANSWER_S_MAX)
    except TimeoutError as error:
        raise Unreachable(
            f"the server took nothing of the job's files for {ANSWER_S_MAX:g} s",
            cure="is it overloaded or stopped? its log says more",
        ) from error
    if not isinstance(said, kind):
        raise ProtocolError(f"the server answered the job's files with {type(said).__name__}")
    return said


def _chunks(path: str, sha256: str, size_bytes: int) -> Iterator[tuple[bytes, bool]]:
    """The file's bytes, and whether they are the last. Its last chunk is given only if all of it is right."""
    hasher, left_bytes = hashlib.sha256(), size_bytes
    try:
        with open(path, "rb", buffering=0) as file:
            while True:
                data = file.read(min(BLOB_CHUNK_BYTES, left_bytes))
                left_bytes -= len(data)
                hasher.update(data)
                if left_bytes and data:
                    yield data, False
                    continue
                if left_bytes or hasher.hexdigest() != sha256:
                    raise InputChanged(
                        f"{path} changed while it was sent", cure="run the job again when it is at rest"
                    )
                yield data, True
                return
    except OSError as error:
        raise _unreadable(path, error) from error


def _find(files: Mapping[str, str], modules: Iterable[str], sources: Mapping[str, str]) -> Iterator[_Found]:
    for name, path in files.items():
        empty = True
        for each in _walk("file", name, path, frozenset()):
            empty = False
            yield each
        if empty:
            raise UsageError(f"the folder {path} has no file in it", cure="leave it out of the job's files")
    for path in modules:
        name = module_name(path) + ("" if os.path.isdir(path) else ".py")
        yield from _walk("module", name, path, frozenset((_CACHE,)))
    for name, path in sources.items():
        yield from _walk("module", name, path, frozenset())


def _walk(kind: Kind, name: str, path: str, left_out: frozenset[str]) -> Iterator[_Found]:
    problem = name_problem(name)
    if problem:
        raise UsageError(f"{path!r} cannot travel with the job: {problem}", cure="rename it")
    try:
        found = os.stat(path)
        inside = sorted(os.listdir(path)) if stat.S_ISDIR(found.st_mode) else []
    except OSError as error:
        raise _unreadable(path, error) from error
    if stat.S_ISREG(found.st_mode):
        yield _Found(kind, name, path, found.st_size)
    elif not stat.S_ISDIR(found.st_mode):
        raise UsageError(f"{path} is neither a file nor a folder", cure="leave it out of the job's files")
    for each in inside:
        below = os.path.join(path, each)
        if os.path.islink(below) and os.path.isdir(below):
            raise UsageError(
                f"{below} is a link to a folder, which is not followed", cure="list that folder by itself"
            )
        if each not in left_out:
            yield from _walk(kind, f"{name}/{each}", below, left_out)


def _hash(path: str) -> tuple[str, int]:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: OSError) -> UsageError:
    return UsageError(
        f"{path}, which is to travel with the job, cannot be read: {error.strerror or error}",
        cure="check the path and its permissions",
    )
