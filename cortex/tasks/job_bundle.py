"""What travelled with a job, put in place in an executor: variables, modules, side files.

Before the job's code is loaded, which may use all three when it is imported.
"""

from __future__ import annotations

import os
import sys
import time

from cortex.side_files import open_files
from cortex.wire.messages import OpenJob


def enter_bundle(open_job: OpenJob) -> None:
    """An executor serves one job: nothing is taken back."""
    os.environ.update(open_job.spec.env)
    if "TZ" in open_job.spec.env:
        time.tzset()
    if open_job.bundle_dir:
        sys.path.insert(0, os.path.join(open_job.bundle_dir, "module"))
    open_files(os.path.join(open_job.bundle_dir, "file"), open_job.files)
