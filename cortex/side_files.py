"""``self.file(name)``: where the side files of the job that this process serves are.

An executor serves one job, so there is one table in a process: it is opened before the job's code is
loaded, and code anywhere in the job (helper modules too, by ``cortex.file``) may ask.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches

from cortex.errors import UsageError

_opened: tuple[str, dict[str, None]] | None = None


def open_files(folder: str, names: Iterable[str]) -> None:
    """From now on `names` (files, and folders of them) are found below `folder`."""
    global _opened
    _opened = folder, dict.fromkeys(sorted(names))


def close_files() -> None:
    global _opened
    _opened = None


def path_of(name: str) -> str:
    """The path of a side file (or a folder of them), read-only. Raises UsageError for an unknown name, and
    outside of a task."""
    if _opened is None:
        raise UsageError(
            f"file({name!r}) was called outside of a task",
            cure="call it in setup, map, combine or reduce; here, open the file by its own path",
        )
    folder, names = _opened
    wanted = name.rstrip("/") if isinstance(name, str) else name
    if wanted in names:
        return os.path.join(folder, wanted)
    close = get_close_matches(str(name), names, 1, 0.5)
    top = [each for each in names if "/" not in each]
    if close:
        cure = f"did you mean {close[0]!r}?"
    elif top:
        cure = f"the job has {', '.join(top)}; list others under `files`"
    else:
        cure = f"list it under `files`, such as files: [{name}]"
    raise UsageError(f"the job has no file {name!r}", cure=cure)
