"""The environment of template and executors. Standard library only: it is read before anything else.

RLIMIT_DATA counts the *virtual* size of writable private mappings, so allocators must not hold on to
address space. With jemalloc's default (retain:true) a process that used 70 MB of buffers had 568 MB
of mappings and would have hit its limit for nothing; with it off, 136 MB, and freed memory goes back
at once. Its background thread is off because a template forks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

ALLOCATOR_ENVIRONMENT: Final = {
    "ARROW_DEFAULT_MEMORY_POOL": "jemalloc",  # where pyarrow has none it takes its default, with a warning
    "JE_ARROW_MALLOC_CONF": "retain:false,background_thread:false",
    "MALLOC_ARENA_MAX": "2",  # glibc: an arena for each thread of a user's library would keep memory apart
}
_ONE_THREAD: Final = {
    "OMP_NUM_THREADS": "1",  # pyarrow's own pool, too
    "ARROW_IO_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "VECLIB_MAXIMUM_THREADS": "1",
}
_SECRET_PREFIX: Final = "CORTEX_"


def template_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of template and executors, from the client's.

    On one machine the job's code is the client's own, and finds there the variables it finds in the
    client: all are passed on but cortex's own (CORTEX_*), which may be secrets. Forced: one thread
    a slot (and none in the template, which forks), PYTHONHASHSEED so that sets iterate alike in
    every attempt, pyarrow's allocator.
    """
    kept = {name: value for name, value in environ.items() if not name.startswith(_SECRET_PREFIX)}
    return {**kept, **_ONE_THREAD, **ALLOCATOR_ENVIRONMENT, "PYTHONHASHSEED": "0"}
