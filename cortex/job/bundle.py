"""What travels with a job beside its code, as plain data: side files, modules, and the packages it needs.

A `Bundle` names blobs, each the bytes of one file, by their SHA-256; the blobs themselves travel apart.
Names come from other machines: `check_bundle` says whether every one of them stays below the folder that
it will be laid out in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Final, Literal

import msgspec

from cortex.errors import ProtocolError
from cortex.limits import BUNDLE_BYTES_MAX, BUNDLE_FILES_MAX, BUNDLE_NAME_BYTES_MAX, FILE_NAME_BYTES_MAX

Kind = Literal["file", "module"]
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class BundleFile(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One file: ``self.file(name)`` for kind "file"; of a module its path, such as ``pkg/__init__.py``."""

    kind: Kind
    name: str
    sha256: str
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]


class Package(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A module that the job's code imports and that does not travel with it."""

    module: str
    """As it is looked up: ``yaml``, or ``google.cloud`` where a name above it belongs to many packages."""
    requirement: str
    """What pip installs it by, such as ``PyYAML==6.0.2``; "" for what pip could not."""
    source: str = ""
    """Then: where the client has it."""


class Bundle(msgspec.Struct, frozen=True):
    files: tuple[BundleFile, ...] = ()
    packages: tuple[Package, ...] = ()

    def blobs(self) -> dict[str, int]:
        """SHA-256 -> bytes; a blob that has several names is there once."""
        return {file.sha256: file.size_bytes for file in self.files}

    def names(self, kind: Kind) -> list[str]:
        return [file.name for file in self.files if file.kind == kind]


NO_BUNDLE: Final = Bundle()


def is_sha256(text: str) -> bool:
    """True for 64 hex digits in small letters: what a peer sends is checked before it names a file."""
    return _SHA256.fullmatch(text) is not None


def name_problem(name: str) -> str:
    """Why `name` cannot be a file's name in a bundle; "" if it can: ``a.txt``, ``folder/a.txt``."""
    if not name:
        return "it is empty"
    if _CONTROL.search(name):
        return "it has a control character"
    if "\\" in name:
        return "it has a backslash"
    try:
        whole = name.encode()
    except UnicodeEncodeError:
        return "it is not UTF-8"
    parts = name.split("/")
    if name.startswith("/"):
        return "it is absolute"
    if ".." in parts or "." in parts or "" in parts:
        return "it has an empty part, . or .."
    if len(whole) > BUNDLE_NAME_BYTES_MAX or any(len(p.encode()) > FILE_NAME_BYTES_MAX for p in parts):
        return "it is too long"
    return ""


def folders_of(names: Iterable[str]) -> set[str]:
    """The folders that these names lie in: of ``a/b/c`` ``a`` and ``a/b``."""
    found = set()
    for name in names:
        while name := name.rpartition("/")[0]:
            found.add(name)
    return found


def check_bundle(bundle: Bundle) -> None:
    """Raise ProtocolError unless every name, hash and size of a bundle from elsewhere can be."""
    if len(bundle.files) > BUNDLE_FILES_MAX or sum(bundle.blobs().values()) > BUNDLE_BYTES_MAX:
        raise ProtocolError("a job's bundle is over its limits")
    sizes: dict[str, int] = {}
    for file in bundle.files:
        problem = name_problem(file.name)
        if problem:
            raise ProtocolError(f"a job's bundle has a file that cannot be named {file.name!r}: {problem}")
        if not is_sha256(file.sha256) or sizes.setdefault(file.sha256, file.size_bytes) != file.size_bytes:
            raise ProtocolError(f"a job's bundle has no such hash or size of {file.name!r}")
    for kind in ("file", "module"):
        names = [file.name for file in bundle.files if file.kind == kind]
        if len(set(names)) < len(names) or folders_of(names) & set(names):
            raise ProtocolError(f"a job's bundle has two {kind}s of one name")
