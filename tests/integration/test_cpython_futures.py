"""The executor of `cortex.Client` under CPython's own cases of executors: see `cpython_futures`."""

from __future__ import annotations

import sys
from concurrent.futures import Future

import pytest

from tests.integration import cpython_futures
from tests.integration.cpython_futures import LEFT_OUT, LEFT_OUT_CLASSES, case_class, cpython_class, modules

if not modules():
    pytest.skip(f"this Python comes without {cpython_futures.NAME}", allow_module_level=True)

TestCalls = case_class("ProcessPoolExecutorTest")
TestWait = case_class("WaitTests")
TestAsCompleted = case_class("AsCompletedTests")
TestShutdown = case_class("ExecutorShutdownTest")
TestDeadlock = case_class("ExecutorDeadlockTest")


def test_what_is_left_out_exists() -> None:
    for name in LEFT_OUT_CLASSES:
        cpython_class(name)
    for name, (_, since) in LEFT_OUT.items():
        of, case = name.split(".")
        assert sys.version_info[:2] < since or callable(getattr(cpython_class(of), case, None)), name


def test_a_class_that_does_not_exist_is_noticed() -> None:
    with pytest.raises(LookupError, match="NoSuchTests"):
        cpython_class("NoSuchTests")


def test_a_future_is_one_of_concurrent_futures() -> None:
    """So that CPython's cases of futures, which make their own, hold for it."""
    with cpython_futures.CortexExecutor(max_workers=1) as executor:
        future = executor.submit(pow, 2, 8)
        assert isinstance(future, Future)
        assert future.result() == 256
