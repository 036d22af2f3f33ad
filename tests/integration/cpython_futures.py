"""CPython's own cases of `concurrent.futures`, for the executor of `cortex.Client`.

Up to 3.11 they are one module, `test.test_concurrent_futures`, later a package; some Pythons come without.
`case_class` makes a class of cases of one of CPython's, whose executors are ours. What is left out is named
in `LEFT_OUT` and `LEFT_OUT_CLASSES`, with the reason.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
import sys
import types
import unittest
import unittest.mock
from concurrent.futures import Executor
from pickle import PicklingError
from typing import Any

import cortex
from cortex.errors import ExecutorDied, UserCodeError

NAME = "test.test_concurrent_futures"
WORKERS = 5  # as many as CPython's cases ask for
_ALL = (3, 11)

_PROCESSES = "looks into a ProcessPoolExecutor: at its processes, threads, pipes and queues"
_CONTEXT = "hands a lock or a manager of multiprocessing to processes that multiprocessing has not started"
_OPTION = "max_tasks_per_child is an option of ProcessPoolExecutor"
_ENDS = "terminate_workers and kill_workers are methods of ProcessPoolExecutor"

LEFT_OUT: dict[str, tuple[str, tuple[int, int]]] = {
    "ProcessPoolExecutorTest.test_max_workers_too_large": ("a limit of Windows", _ALL),
    "ProcessPoolExecutorTest.test_killed_child": (_PROCESSES, _ALL),
    "ProcessPoolExecutorTest.test_ressources_gced_in_workers": (_CONTEXT, _ALL),
    "ProcessPoolExecutorTest.test_saturation": (_CONTEXT, _ALL),
    "ProcessPoolExecutorTest.test_idle_process_reuse_one": (_PROCESSES, _ALL),
    "ProcessPoolExecutorTest.test_idle_process_reuse_multiple": (_PROCESSES, _ALL),
    "ProcessPoolExecutorTest.test_max_tasks_per_child": (_OPTION, _ALL),
    "ProcessPoolExecutorTest.test_max_tasks_per_child_defaults_to_spawn_context": (_OPTION, _ALL),
    "ProcessPoolExecutorTest.test_max_tasks_early_shutdown": (_OPTION, _ALL),
    "ProcessPoolExecutorTest.test_python_finalization_error": (_PROCESSES, (3, 13)),
    "ProcessPoolExecutorTest.test_terminate_workers": (_ENDS, (3, 14)),
    "ProcessPoolExecutorTest.test_kill_workers": (_ENDS, (3, 14)),
    "ProcessPoolExecutorTest.test_force_shutdown_workers_invalid_op": (_ENDS, (3, 14)),
    "ProcessPoolExecutorTest.test_force_shutdown_workers": (_ENDS, (3, 14)),
    "ProcessPoolExecutorTest.test_force_shutdown_workers_dead_workers": (_ENDS, (3, 14)),
    "ProcessPoolExecutorTest.test_force_shutdown_workers_not_started_yet": (_ENDS, (3, 14)),
    "ProcessPoolExecutorTest.test_force_shutdown_workers_stops_pool": (_ENDS, (3, 14)),
    "ExecutorDeadlockTest.test_shutdown_deadlock_pickle": (_PROCESSES, _ALL),
    "ExecutorDeadlockTest.test_gh105829_should_not_deadlock_if_wakeup_pipe_full": (_PROCESSES, (3, 13)),
}
"""`Class.case` -> why it does not apply, and from which Python on there is such a case (older ones may have
it, too: cases are handed down in bugfix releases)."""

LEFT_OUT_CLASSES = {
    "InitializerMixin": "an initializer is an option of CPython's pools",
    "FailingInitializerMixin": "an initializer is an option of CPython's pools",
    "ProcessPoolShutdownTest": _PROCESSES,
    "ThreadPoolExecutorTest": "threads share the memory of who submits",
    "ThreadPoolShutdownTest": "threads share the memory of who submits",
    "ThreadPoolWaitTests": "threads share the memory of who submits",
}
"""Whole classes, but for what they inherit from others."""


@functools.cache
def client() -> cortex.Client:
    """One for all cases of this process, as a program has."""
    return cortex.Client(slots=WORKERS)


class CortexExecutor:
    """What CPython's cases call their `executor_type`. They give it a context (ours is None)."""

    def __new__(cls, max_workers: int | None = None, mp_context: None = None) -> Executor:  # type: ignore[misc]
        assert mp_context is None
        return client().executor(max_workers=max_workers)


@functools.cache
def modules() -> tuple[types.ModuleType, ...]:
    """() where this Python comes without its tests."""
    try:
        top = importlib.import_module(NAME)
    except ModuleNotFoundError as error:
        if error.name not in ("test", NAME):
            raise
        return ()
    found = [top]
    for each in pkgutil.iter_modules(getattr(top, "__path__", ())):
        try:
            found.append(importlib.import_module(f"{NAME}.{each.name}"))
        except unittest.SkipTest:  # of what this build of Python has not got
            continue
    return tuple(found)


def cpython_class(name: str) -> type:
    """Raises LookupError."""
    for module in modules():
        found = vars(module).get(name)
        if isinstance(found, type) and found.__module__ == module.__name__:
            return found
    raise LookupError(f"{NAME} has no class {name}")


class _Ours(unittest.TestCase):
    """First among the bases of a class of cases. Some of what the cases name means something else here."""

    executor_type = CortexExecutor
    cases_module: str
    """CPython's: where its cases find what they name."""

    def setUp(self) -> None:
        from test import support

        client().executor(max_workers=1).submit(int).result()  # what it starts is there from now on
        patched = unittest.mock.patch.dict(vars(sys.modules[self.cases_module]), NAMED)
        patched.start()
        self.addCleanup(patched.stop)
        self._support = support
        support.environment_altered = False
        super().setUp()

    def tearDown(self) -> None:
        super().tearDown()
        # CPython's own runner fails a case that leaves a thread or a process behind, by this
        assert not self._support.environment_altered, "a thread or a process was left behind"

    def get_context(self) -> None:
        """Of multiprocessing."""


def _run_python(*arguments: str, **options: Any) -> Any:
    """CPython's `assert_python_ok`, for a program that imports our executor where it names it. Lines that
    calls print say here which call it was."""
    from test.support.script_helper import assert_python_ok

    *before, program = arguments
    wanted = f"from concurrent.futures import {CortexExecutor.__name__}"
    ours = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import {CortexExecutor.__name__}"
    assert wanted in program
    code, out, errors = assert_python_ok(*before, program.replace(wanted, ours), **options)
    return code, re.sub(rb"^\[\w+ #\d+\] ", b"", out, flags=re.MULTILINE), errors


NAMED: dict[str, Any] = {
    "assert_python_ok": _run_python,
    # a call that kills its executor fails, and one whose argument or result cannot be pickled: the errors are
    # ours, and say which call it is of which function
    "BrokenProcessPool": (ExecutorDied, UserCodeError),
    "PicklingError": (PicklingError, UserCodeError),
    "SystemExit": (SystemExit, UserCodeError),
}
"""What it is here that the cases name."""


def case_class(name: str) -> type:
    """The cases of CPython's class `name` that apply. Raises LookupError."""
    cases = cpython_class(name)
    bases = (_Ours, cases, cpython_class("ExecutorMixin"), cpython_class("BaseTestCase"))
    members: dict[str, Any] = {
        "__module__": __name__,
        "cases_module": cases.__module__,
        "worker_count": WORKERS,
    }
    for left_out in LEFT_OUT:
        of, case = left_out.split(".")
        if of == name:
            members[case] = None  # which is no case for whoever collects them
    return type(f"Cortex{name}", bases, members)
