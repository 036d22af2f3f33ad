"""What travelled with a job, put in place in an executor: paths, variables, modules, side files.

Before the job's code is loaded, which may use all three when it is imported.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator

from cortex.errors import UserCodeError
from cortex.job.bundle import Package
from cortex.packages import other_versions
from cortex.side_files import open_files
from cortex.wire.messages import OpenJob


def enter_bundle(open_job: OpenJob) -> None:
    """An executor serves one job: nothing is taken back."""
    for folder in reversed(open_job.sys_path):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    os.environ.update(open_job.spec.env)
    if "TZ" in open_job.spec.env:
        time.tzset()
    if open_job.bundle_dir:
        sys.path.insert(0, os.path.join(open_job.bundle_dir, "module"))
    open_files(os.path.join(open_job.bundle_dir, "file"), open_job.files)


@contextlib.contextmanager
def versions_told(packages: Iterable[Package]) -> Iterator[None]:
    """Code that cannot be loaded may have been pickled with another version of a package: say which are."""
    try:
        yield
    except UserCodeError as error:
        others = sorted(other_versions(packages).items())
        if others:
            error.details["other versions"] = "; ".join(
                f"{wanted.partition('==')[0]} {here} here, {wanted.partition('==')[2]} at the client"
                for wanted, here in others
            )
            pip = " ".join(f"'{wanted}'" for wanted, _ in others)
            error.cure += f"; or the versions differ too much: pip install {pip}"
        raise
