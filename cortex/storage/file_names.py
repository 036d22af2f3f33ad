"""What the files of a job are called in its folder on a node. Ids are checked before they name a file.

Standard library only: the node and its executors use the same names.
"""

from __future__ import annotations

import os

from cortex.errors import InternalError
from cortex.ids import is_attempt_id
from cortex.limits import PARTITIONS_MAX


def run_path(work_dir: str, attempt: str, kind: str = "run") -> str:
    """``<attempt>.run``: a committed run file. `kind` is ``partial`` while it is written."""
    if not is_attempt_id(attempt):
        raise InternalError(f"{attempt!r} is no attempt id")
    return os.path.join(work_dir, f"{attempt}.{kind}")


def segment_path(work_dir: str, attempt: str, partition: int, kind: str = "segment") -> str:
    """``<attempt>.p00012.segment``: a committed segment of an attempt that ran on another node."""
    if not is_attempt_id(attempt):
        raise InternalError(f"{attempt!r} is no attempt id")
    if not 0 <= partition < PARTITIONS_MAX:
        raise InternalError(f"{partition!r} is no partition")
    return os.path.join(work_dir, f"{attempt}.p{partition:05d}.{kind}")
