"""Where a node's spilled data lies: a folder for each job, in the spill folder with most room.

A folder is removed in threads, under another name, so that its job may come again meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence

from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from cortex.errors import SpillFull
from cortex.ids import new_job_id

_log = Logger()
_OUTPUT = "output"  # of a job's folder: parts of the result that the client will fetch
_REMOVERS = 2  # threads that remove files: unlinking large ones blocks, more would not be faster


class SpillFolders:
    """`folders` are the node's own, mode 0700. But for `stop`, all is quick and for one thread."""

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = tuple(folders)
        self._removers = ThreadPool(0, _REMOVERS, name="remove-spilled")

    def start(self) -> None:
        self._removers.start()

    @property
    def logs(self) -> str:
        """For the executors' logs."""
        return self._folders[0]

    def make(self, job: str, staging_dir: str) -> tuple[str, str]:
        """New folders for a job: (of its run files, of its parts of the output, unless that is given).

        Raises SpillFull.
        """
        work_dir = os.path.join(max(self._folders, key=_free_bytes), job)
        try:
            os.mkdir(work_dir, 0o700)
            if not staging_dir:
                staging_dir = os.path.join(work_dir, _OUTPUT)
                os.mkdir(staging_dir, 0o700)
        except OSError as error:
            raise SpillFull(
                f"cannot make a folder for spilled data, {work_dir}: {error.strerror}",
                cure="check that the folder is there and its disk is not full, or name another",
            ) from error
        return work_dir, staging_dir

    def discard(self, work_dir: str) -> None:
        """Nobody uses the job's folder any more."""
        if not work_dir:
            return
        aside = f"{work_dir}.{new_job_id()}"
        try:
            os.rename(work_dir, aside)
        except OSError:  # gone: the disk, or somebody, has removed it
            return
        self._removers.callInThread(_remove, aside)

    def discard_shared(self, folder: str) -> None:
        """A failed job's output on a path that all nodes share, as far as it was written."""
        self._removers.callInThread(shutil.rmtree, folder, ignore_errors=True)

    def discard_file(self, path: str) -> None:
        """A file that nobody wants any more; others may have removed it."""
        self._removers.callInThread(_remove_file, path)

    def keep_output(self, work_dir: str) -> None:
        """Of the job's folder only its parts of the result are needed any more."""
        self._removers.callInThread(_remove_but_output, work_dir)

    def free_bytes(self) -> int:
        return free_bytes(self._folders)

    def stop(self) -> None:
        """Wait until all that was discarded is removed: not on the reactor's thread."""
        self._removers.stop()


def free_bytes(folders: Sequence[str]) -> int:
    """Of the devices that the folders are on, each counted once; -1 when none can be asked."""
    free: dict[int, int] = {}
    for folder in folders:
        with contextlib.suppress(OSError):
            free[os.stat(folder).st_dev] = shutil.disk_usage(folder).free
    return sum(free.values()) if free else -1


def _remove_file(path: str) -> None:
    with contextlib.suppress(OSError):  # gone with its folder, or removed by who has read it
        os.unlink(path)


def _free_bytes(folder: str) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return -1


def _remove_but_output(folder: str) -> None:
    """In a thread. The folder may be discarded meanwhile."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if name == _OUTPUT:
                continue
            if os.path.isdir(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                os.unlink(path)


def _remove(folder: str) -> None:
    """In a thread. That something is left is said in the log."""
    shutil.rmtree(folder, ignore_errors=True)
    if os.path.exists(folder):
        _log.warn("cannot remove all of {folder}", folder=folder)
