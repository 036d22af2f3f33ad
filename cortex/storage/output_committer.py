"""The user's output folder: nothing of it is visible until all of it is.

A job's parts are written into a *staging* folder, a hidden sibling ``.<name>.<nonce>.partial`` on the
same disk. `commit_output` drops what losing attempts left there, gives the parts their names, writes
``_manifest.json`` and then ``_SUCCESS``, makes all of it durable and moves the folder to the output's
name in one rename. With `overwrite` the old output and the new one swap names in one step; where the
system cannot swap, the old one steps aside as ``.<name>.<nonce>.old`` first, and the next job on this
output puts it back if the machine stopped between the two renames. So whenever a crash comes, the
output is the old one or the new one, whole.

A staging folder carries a lock for as long as its job lives (a lock on the folder itself: it outlives
the rename and dies with the process). One without a lock was left by a killed job and is removed by
the next job that writes to the same output. Which folders are ours is told by the nonce, a job's id: what
else is hidden there is the user's.

Raises OutputExistsError when the output is there already, at the start and again at the end, and
OutputFailed for all that a disk or a missing right can do.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cortex.errors import InternalError, OutputExistsError, OutputFailed
from cortex.held_signals import held_signals
from cortex.ids import is_job_id
from cortex.limits import REMOVE_S_MAX
from cortex.storage.filesystem import Filesystem, FolderLock, is_disk_full

MANIFEST = "_manifest.json"
SUCCESS = "_SUCCESS"
STAGED, ASIDE = ".partial", ".old"
PART = "part-"


class Part(Protocol):
    """`cortex.wire.messages.OutputPart`, or anything shaped like it."""

    @property
    def name(self) -> str: ...
    @property
    def staged_as(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def columns(self) -> Sequence[tuple[str, str]]: ...


@dataclass
class StagedOutput:
    """A job's hold on its output. Parts are written into `path`."""

    path: str
    output_path: str
    overwrite: bool
    lock: FolderLock | None = field(default=None, repr=False)
    made_folders: tuple[str, ...] = ()
    """Parents of the output that did not exist before, innermost first."""

    def __fspath__(self) -> str:
        return self.path


def stage_output(fs: Filesystem, output_path: str, nonce: str, overwrite: bool = False) -> StagedOutput:
    """A new staging folder for `output_path`; `nonce`, a job id, tells it from other jobs'.

    Raises OutputExistsError when the output exists, unless it is an empty folder or `overwrite` is
    given; with it, when the output is none of cortex (see `check_output`).
    """
    if not is_job_id(nonce):
        raise InternalError(f"{nonce!r} is no job id: the folder it names would never be cleared away")
    output = os.path.realpath(output_path)
    parent, name = os.path.split(output)
    with failing(f"output {output_path} cannot be written"):
        check_output(fs, output, overwrite)
        made = make_parents(fs, parent)
        try:
            remove_stale(fs, output)
            check_output(fs, output, overwrite)  # an old output may be back
            path = os.path.join(parent, f".{name}.{nonce}{STAGED}")
            fs.mkdir(path)
        except BaseException:
            _remove_folders(fs, made)
            raise
        return StagedOutput(path, output, overwrite, fs.lock_folder(path), made)


def check_output(fs: Filesystem, output: str, overwrite: bool) -> None:
    """Raise OutputExistsError if a job may not put its output at `output` (a real path).

    `overwrite` replaces an output of cortex (a folder with a manifest, and nothing of the user's in
    it). It replaces no other folder, and no file: its owner may have meant another one, or its input.
    """
    if not fs.exists(output):
        return
    if not fs.is_folder(output):
        raise OutputExistsError(
            f"output {output} is a file; cortex writes a folder", cure="name another folder with --output"
        )
    names = fs.listdir(output)
    if not names:
        return
    if not overwrite:
        raise OutputExistsError(
            f"output {output} exists already", cure="add --overwrite to replace it, or name another folder"
        )
    foreign = _foreign(names)
    if foreign:
        raise OutputExistsError(
            f"output {output} holds what no job of cortex wrote, such as {foreign[0]}: --overwrite does not "
            "remove it",
            cure="remove it yourself, or name another folder with --output",
        )
    here = os.path.realpath(os.getcwd())
    if here == output or here.startswith(output + os.sep):
        raise OutputExistsError(
            f"output {output} holds the folder you are in, and --overwrite would remove it",
            cure="name another folder with --output",
        )


def _foreign(names: Sequence[str]) -> list[str]:
    """The names in a folder that say it is no output of cortex, or holds more than one.

    Hidden files may have come since (a file manager's, checksums); parts are known by their names.
    """
    if MANIFEST not in names:
        return sorted(names)
    ours = (MANIFEST, SUCCESS)
    return sorted(n for n in names if n not in ours and not n.startswith((PART, ".")))


def commit_output(
    fs: Filesystem, staged: StagedOutput, parts: Sequence[Part], manifest: dict[str, Any]
) -> None:
    """Make the parts, in this order, the output. On an error the output is as it was before, but for
    one: when only the last fsync fails, the new output is in place and the error says so.

    `manifest` is what ``_manifest.json`` says beside its ``rows`` and ``files``. Afterwards, or after
    an error, the staging folder is gone.
    """
    try:
        with failing(f"output {staged.output_path} could not be committed"):
            _fill(fs, staged.path, parts, manifest)
            check_output(fs, staged.output_path, staged.overwrite)
            publish(fs, staged)
    except BaseException:
        abort_output(fs, staged)
        raise
    if staged.lock is not None:
        staged.lock.close()
        staged.lock = None


def abort_output(fs: Filesystem, staged: StagedOutput) -> None:
    """Remove the staging folder and the parents made for it; safe to call twice.

    What cannot be removed stays, without its lock, for `remove_stale`: the error that led here
    matters more. A signal is held until it is done.
    """
    with held_signals(REMOVE_S_MAX):
        with contextlib.suppress(OSError):
            fs.remove_tree(staged.path)
        if staged.lock is not None:
            staged.lock.close()
            staged.lock = None
        with contextlib.suppress(OSError):
            _remove_folders(fs, staged.made_folders)


def remove_stale(fs: Filesystem, output: str) -> list[str]:
    """Remove what killed jobs left beside `output`, and put back an old output that stepped aside.

    Returns the paths dealt with. A folder whose lock is held, or that cannot be locked, is left alone.
    One that stepped aside and has no manifest was being removed already.
    """
    parent, name = os.path.split(output)
    found = []
    for entry in fs.listdir(parent):
        aside = entry.endswith(ASIDE)
        nonce = entry.removeprefix(f".{name}.").removesuffix(ASIDE if aside else STAGED)
        if not is_job_id(nonce) or entry != f".{name}.{nonce}{ASIDE if aside else STAGED}":
            continue
        path = os.path.join(parent, entry)
        if not fs.is_folder(path) or (lock := fs.lock_folder(path)) is None:
            continue
        try:
            if aside and not fs.exists(output) and fs.exists(os.path.join(path, MANIFEST)):
                fs.rename(path, output)
                fs.sync_folder(parent)
            else:
                fs.remove_tree(path)
        finally:
            lock.close()
        found.append(path)
    return found


def _fill(fs: Filesystem, folder: str, parts: Sequence[Part], manifest: dict[str, Any]) -> None:
    """Leave in `folder` the parts under their names, the manifest and _SUCCESS, all durable."""
    check_names(folder, parts)
    wanted = {part.staged_as for part in parts}
    for entry in fs.listdir(folder):
        if entry not in wanted:
            path = os.path.join(folder, entry)
            if fs.is_folder(path):
                fs.remove_tree(path)
            else:
                fs.unlink(path)
    for part in parts:
        check_size(fs, os.path.join(folder, part.staged_as), part)
    _rename_all(fs, folder, parts)
    write_file(fs, os.path.join(folder, MANIFEST), manifest_text(parts, manifest).encode())
    # What the user gets has the rights any file of theirs has: those the umask leaves.
    mode = fs.mode(os.path.join(folder, MANIFEST))
    for part in parts:
        path = os.path.join(folder, part.name)
        fs.chmod(path, mode)
        fs.sync_file(path)
    write_file(fs, os.path.join(folder, SUCCESS), b"")
    fs.chmod(folder, mode | 0o700 | (mode & 0o444) >> 2)
    fs.sync_folder(folder)


def check_names(folder: str, parts: Sequence[Part]) -> None:
    """Raise InternalError unless these can be the names of parts."""
    wanted = {part.staged_as for part in parts}
    names = {part.name for part in parts}
    if len(wanted) != len(parts) or len(names) != len(parts):
        raise InternalError(f"{folder}: two parts have the same name")
    for name in sorted(wanted | names):
        if name != os.path.basename(name) or name.startswith((".", "_")) or not name:
            raise InternalError(f"{folder}: {name!r} cannot be the name of a part")


def check_size(fs: Filesystem, path: str, part: Part) -> None:
    """Raise OutputFailed unless the part's file has the bytes that its writer reported."""
    size = fs.file_bytes(path)
    if size != part.size_bytes:
        raise OutputFailed(
            f"{path} has {size} bytes, its writer reported {part.size_bytes}",
            cure="run the job again; if this repeats, check the disk",
            details={"file": path},
        )


def manifest_text(parts: Sequence[Part], manifest: dict[str, Any]) -> str:
    files = [
        {"name": p.name, "rows": p.rows, "bytes": p.size_bytes, "columns": [list(c) for c in p.columns]}
        for p in parts
    ]
    return json.dumps({**manifest, "rows": sum(p.rows for p in parts), "files": files}, indent=1) + "\n"


def _rename_all(fs: Filesystem, folder: str, parts: Sequence[Part]) -> None:
    """Through a second name where a part's name is still another one's staged name."""
    staged = {part.staged_as for part in parts}
    if any(part.name in staged and part.name != part.staged_as for part in parts):
        for number, part in enumerate(parts):
            fs.rename(os.path.join(folder, part.staged_as), os.path.join(folder, f".{number}"))
        for number, part in enumerate(parts):
            fs.rename(os.path.join(folder, f".{number}"), os.path.join(folder, part.name))
        return
    for part in parts:
        if part.name != part.staged_as:
            fs.rename(os.path.join(folder, part.staged_as), os.path.join(folder, part.name))


def publish(fs: Filesystem, staged: StagedOutput) -> None:
    output, parent = staged.output_path, os.path.dirname(staged.output_path)
    if not fs.exists(output) or not fs.listdir(output):
        try:
            fs.rename(staged.path, output)
        except OSError:
            if fs.exists(output):  # another job was faster
                check_output(fs, output, False)
            raise
        _after(fs, parent, None)
        return
    if fs.exchange(staged.path, output):
        _after(fs, parent, staged.path)
        return
    aside = staged.path.removesuffix(STAGED) + ASIDE
    fs.rename(output, aside)
    try:
        fs.rename(staged.path, output)
    except BaseException:
        fs.rename(aside, output)
        raise
    _after(fs, parent, aside)


def _after(fs: Filesystem, parent: str, old: str | None) -> None:
    """The new output is in place: no failure from here on may call it failed, or undo it.

    The fsync comes before the old output is removed, so that a crash of the machine finds one of them.
    """
    try:
        fs.sync_folder(parent)
    except OSError as error:
        raise OutputFailed(
            f"the output is complete, but {parent} could not be made durable: {error}",
            cure="copy the output to another disk",
        ) from error
    if old is not None:
        with contextlib.suppress(OSError):  # left for remove_stale: it holds nothing of the new output
            fs.remove_tree(old)


def write_file(fs: Filesystem, path: str, data: bytes) -> None:
    file = fs.create(path, 0o666)
    try:
        file.write(data)
        file.sync()
    finally:
        file.close()


def make_parents(fs: Filesystem, folder: str) -> tuple[str, ...]:
    missing = []
    at = folder
    while not fs.exists(at):
        missing.append(at)
        at = os.path.dirname(at)
    for path in reversed(missing):
        fs.mkdir(path, 0o777)
    return tuple(missing)


def _remove_folders(fs: Filesystem, folders: Sequence[str]) -> None:
    for path in folders:
        if fs.exists(path) and not fs.listdir(path):
            fs.rmdir(path)


@contextlib.contextmanager
def failing(what: str) -> Iterator[None]:
    """An OSError inside becomes OutputFailed, with a cure for the causes that have one."""
    try:
        yield
    except PermissionError as error:
        raise OutputFailed(
            f"{what}: no right to write there",
            cure="name a folder of yours with --output",
            details={"cause": error},
        ) from error
    except OSError as error:
        cure = "free space on its disk, or name a folder on another one with --output"
        raise OutputFailed(
            f"{what}: {error.strerror or error}",
            cure=cure if is_disk_full(error) else "",
            details={"cause": error},
        ) from error
