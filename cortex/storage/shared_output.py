"""An output folder on a file system that all nodes see: attempts write into it, one of them commits it.

Beside the output lies ``.<name>.<job>.shared``, made once for a job by whoever plans it. Attempts write below
it, in ``attempts``, under names of their own. `commit_shared` moves the parts of accepted attempts out of
there, removes ``attempts`` with what others left (so that a straggler finds no folder to write in), writes
``_manifest.json`` and then ``_SUCCESS``, and gives the folder the output's name in one rename.

A commit may be begun again, also while an earlier one is still at it on a machine that was thought lost: each
step may find itself done. A manifest names its job, so that it is known whose output is in place.

Raises OutputExistsError and OutputFailed, as `cortex.storage.output_committer` does, whose rules hold here.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from typing import Any, Final

from cortex.errors import InternalError, OutputExistsError, OutputFailed
from cortex.storage.filesystem import Filesystem
from cortex.storage.output_committer import (
    ASIDE,
    MANIFEST,
    SUCCESS,
    Part,
    StagedOutput,
    check_names,
    check_output,
    check_size,
    failing,
    make_parents,
    manifest_text,
    publish,
    write_file,
)

SHARED: Final = ".shared"
_ATTEMPTS: Final = "attempts"


def shared_folder(output: str, job: str) -> str:
    """What a job's output is, until it is committed. `output` is absolute."""
    parent, name = os.path.split(output)
    return os.path.join(parent, f".{name}.{job}{SHARED}")


def attempts_folder(output: str, job: str) -> str:
    """Where attempts write their parts."""
    return os.path.join(shared_folder(output, job), _ATTEMPTS)


def begin_shared(fs: Filesystem, output: str, job: str, overwrite: bool) -> None:
    """Make the folder of a job, unless it is there. Raises OutputExistsError for an output that is."""
    with failing(f"output {output} cannot be written"):
        check_output(fs, output, overwrite)
        make_parents(fs, os.path.dirname(output))
        for folder in (shared_folder(output, job), attempts_folder(output, job)):
            with contextlib.suppress(FileExistsError):
                fs.mkdir(folder)


def commit_shared(
    fs: Filesystem, output: str, job: str, overwrite: bool, parts: Sequence[Part], manifest: dict[str, Any],
    attempt: str,
) -> None:  # fmt: skip
    """Make the parts, in this order, the output; nothing if they are it already. `attempt` is a name that no
    other commit has. On an error what was written is still there: another may go on."""
    folder = shared_folder(output, job)
    check_names(folder, parts)
    with failing(f"output {output} could not be committed"):
        if not is_committed(fs, output, job):
            try:
                check_output(fs, output, overwrite)
                _fill(fs, folder, parts, {**manifest, "id": job}, attempt)
                check_output(fs, output, overwrite)
                _publish(fs, folder, output, overwrite, job)
            except (OSError, OutputFailed, OutputExistsError):
                if not is_committed(fs, output, job):  # else another was faster
                    raise
        fs.sync_folder(os.path.dirname(output))  # whoever has moved it there may not have come to this
        remove_shared(fs, output, job)


def is_committed(fs: Filesystem, output: str, job: str) -> bool:
    return fs.exists(os.path.join(output, SUCCESS)) and _job_of(fs, output) == job


def remove_shared(fs: Filesystem, output: str, job: str) -> None:
    """The job has ended: what is left beside its output is of no use."""
    folder = shared_folder(output, job)
    if is_committed(fs, output, job) and fs.exists(folder + ASIDE):
        fs.remove_tree(folder + ASIDE)
    fs.remove_tree(folder)


def _fill(fs: Filesystem, folder: str, parts: Sequence[Part], manifest: dict[str, Any], attempt: str) -> None:
    """Every step may have been done before."""
    for part in parts:
        target = os.path.join(folder, part.name)
        with contextlib.suppress(FileNotFoundError):
            fs.rename(os.path.join(folder, _ATTEMPTS, part.staged_as), target)
        if not fs.exists(target):
            raise OutputFailed(
                f"{part.name}, a part that an attempt has written, is gone from {folder}",
                cure="run the job again; if this repeats, see who removes files there",
            )
        check_size(fs, target, part)
    wanted = {MANIFEST, SUCCESS, *(part.name for part in parts)}
    for entry in fs.listdir(folder):
        path = os.path.join(folder, entry)
        if entry in wanted:
            continue
        if fs.is_folder(path):
            fs.remove_tree(path)
        else:
            with contextlib.suppress(FileNotFoundError):
                fs.unlink(path)
    text = manifest_text(parts, manifest)
    for name, data in ((MANIFEST, text.encode()), (SUCCESS, b"")):
        own = os.path.join(folder, f".{attempt}{name}")
        write_file(fs, own, data)
        mode = fs.mode(own)
        fs.rename(own, os.path.join(folder, name))
    for part in parts:
        path = os.path.join(folder, part.name)
        fs.chmod(path, mode)
        fs.sync_file(path)
    fs.chmod(folder, mode | 0o700 | (mode & 0o444) >> 2)
    fs.sync_folder(folder)


def _publish(fs: Filesystem, folder: str, output: str, overwrite: bool, job: str) -> None:
    if _job_of(fs, folder) != job:  # swapped by another: this is the old output
        raise FileNotFoundError(folder)
    publish(fs, StagedOutput(folder, output, overwrite))


def _job_of(fs: Filesystem, folder: str) -> str:
    """The job whose output a folder is, as its manifest says; "" if it has none."""
    path = os.path.join(folder, MANIFEST)
    try:
        size = fs.file_bytes(path)
        file = fs.open(path)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    try:
        said = json.loads(file.pread(size, 0))
    except ValueError:
        return ""
    finally:
        file.close()
    return str(said.get("id", "")) if isinstance(said, dict) else ""


def staging_of(attempts: str) -> str:
    """The folder that `attempts_folder` is in. Raises InternalError for another's: it would be removed."""
    folder, name = os.path.split(attempts)
    if name != _ATTEMPTS or not folder.endswith(SHARED):
        raise InternalError(f"{attempts!r} is no folder of attempts")
    return folder
