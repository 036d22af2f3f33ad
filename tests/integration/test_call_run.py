"""Maps and submitted calls against a server of this process (`tests.call_server`): what comes twice, is lost,
cannot be read, or is not taken."""

from __future__ import annotations

import functools
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import numpy as np
import pytest

from cortex.call_functions import Functions
from cortex.calls import Errors, results_of
from cortex.client.attachments import FiledData, MemoryData
from cortex.client.bundle_packing import NOTHING_PACKED
from cortex.client.call_errors import CallError
from cortex.client.call_run import CallOptions, CallRun
from cortex.client.compute_link import CallLink
from cortex.client.futures import CallExecutor, CallFuture, Submits, broken
from cortex.errors import (
    Cancelled,
    CortexError,
    NotAllowed,
    ServerDied,
    UsageError,
    UserCodeError,
)
from cortex.ids import new_job_id
from cortex.job.spec import InputSpec, JobSpec
from cortex.limits import MIB
from cortex.tasks.attached_files import offsets, parts_of
from cortex.tasks.cell_pickles import dump_list, load_list
from cortex.wire.messages import CellDone, SubmitJob
from tests.call_server import CallServer


class Harness:
    def __init__(self, server: CallServer) -> None:
        self.server = server
        self.printed: list[tuple[str, int]] = []
        request = SubmitJob(
            JobSpec("calls", InputSpec(()), compute=True), b"", (), server.staging, job=new_job_id()
        )
        store = FiledData(server.staging)
        self.link = CallLink(
            server,  # type: ignore[arg-type]  # as much of a session as a link needs
            request,
            NOTHING_PACKED,
            store,
            lambda message, name: self.printed.append((name, message.call)),
        )
        self.functions = Functions(request.job, True)
        self.submits = Submits(self.link)

    def map(
        self, function: Callable[..., Any], xs: Iterable[Any], errors: Errors = "raise", **options: Any
    ) -> Iterator[Any]:
        length = len(xs) if isinstance(xs, list | range) else None
        chosen = CallOptions(**options)
        return results_of(
            CallRun(self.link, self.functions.fresh(function), iter(xs), length, chosen), errors
        )

    def submit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        future = CallFuture(self.link, None)
        self.submits.submit(*self.functions.call(function, (args, kwargs)), future)
        return future

    def left(self) -> list[str]:
        return os.listdir(self.server.staging)


@pytest.fixture
def harness() -> Iterator[Harness]:
    server = CallServer()
    harness = Harness(server)
    yield harness
    harness.link.close()
    server.close()


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def double(x: Any) -> Any:
    return x * 2


# --- maps -----------------------------------------------------------------------------------------


def test_results_in_order_whatever_comes_first_or_twice(harness: Harness) -> None:
    harness.server.results = lambda done: [done, done]
    assert list(harness.map(double, range(50_000))) == [2 * x for x in range(50_000)]
    sizes = [cell.count for cell in harness.server.cells]
    assert sizes[0] == 1
    assert len(sizes) < 100, "cells have grown"


def test_results_as_they_come(harness: Harness) -> None:
    def late(x: int) -> int:
        time.sleep(0.3 if x == 0 else 0)
        return x

    got = list(harness.map(late, range(100), ordered=False))
    assert sorted(got) == list(range(100))
    assert got[0] != 0


def test_one_slow_call_does_not_stop_the_others(harness: Harness) -> None:
    slow = threading.Event()

    def function(x: int) -> int:
        time.sleep(0.5 if x == 0 else 0.001)
        return x

    results = harness.map(function, range(200))
    assert next(results) == 0
    # The other slot has worked on meanwhile: what it did is here at once.
    began = time.monotonic()
    assert next(results) == 1
    assert list(itertools.islice(results, 99)) == list(range(2, 101))
    assert time.monotonic() - began < 0.25
    assert not slow.is_set()


def test_an_endless_source_is_pulled_as_results_are_taken(harness: Harness) -> None:
    pulled = itertools.count()
    asked: list[int] = []

    def source() -> Iterator[int]:
        for x in pulled:
            asked.append(threading.get_ident())
            yield x

    results = harness.map(double, source())
    assert asked == []
    first = [next(results) for _ in range(1000)]
    assert first == [2 * x for x in range(1000)]
    time.sleep(0.2)
    before = len(asked)
    time.sleep(0.2)
    assert len(asked) == before, "nothing is pulled while nothing is taken"
    assert set(asked) == {threading.get_ident()}
    results.close()  # type: ignore[attr-defined]
    assert list(harness.map(double, [4])) == [8]


def test_a_source_that_fails_ends_its_map_only(harness: Harness) -> None:
    def source() -> Iterator[int]:
        yield from range(10)
        raise LookupError("no more")

    with pytest.raises(LookupError):
        list(harness.map(double, source()))
    assert list(harness.map(double, [4])) == [8]


def test_a_map_that_is_dropped_drops_its_cells(harness: Harness) -> None:
    results = harness.map(lambda x: time.sleep(0.05) or x, range(1000))
    assert next(results) == 0
    del results
    wait_for(lambda: bool(harness.server.dropped))
    assert not len(harness.link._ledger)


def test_without_results_calls_are_counted(harness: Harness) -> None:
    run = CallRun(
        harness.link,
        harness.functions.fresh(lambda x: 1 / x),
        iter([1, 2, 0, 4]),
        4,
        CallOptions(discard=True, ordered=False),
    )
    batches = list(run)
    assert sum(batch.count for batch in batches) == 4
    assert [each.argument_index for batch in batches for each in batch.failures] == [2]


# --- failures -------------------------------------------------------------------------------------


def test_a_failing_call_raises_what_it_raised_with_its_traceback(harness: Harness) -> None:
    results = harness.map(lambda x: 1 // x, [1, 1, 0, 1])
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError) as caught:
        next(results)
    assert "1 // x" in str(caught.value.__cause__)
    assert caught.value.__notes__[0].startswith("in call 2 of ")
    with pytest.raises(StopIteration):
        next(results)


def test_failing_calls_returned_or_collected(harness: Harness) -> None:
    got = list(harness.map(lambda x: 1 // x, [1, 0, 1, 0], errors="return"))
    assert [got[0], got[2]] == [1, 1]
    assert [each.argument_index for each in (got[1], got[3])] == [1, 3]
    assert isinstance(got[1], CallError)
    assert isinstance(got[1].exception, ZeroDivisionError)
    assert "1 // x" in got[1].traceback
    results = harness.map(lambda x: 1 // x, [1, 0, 1, 0], errors="collect")
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ExceptionGroup) as caught:
        next(results)
    assert [type(each) for each in caught.value.exceptions] == [ZeroDivisionError] * 2


def test_failing_calls_are_tried_again(harness: Harness) -> None:
    tries: dict[int, int] = {}

    def flaky(x: int) -> int:
        tries[x] = tries.get(x, 0) + 1
        if x % 7 == 0 and tries[x] < 3:
            raise ValueError(x)
        return x

    harness.server.functions_by_name["flaky"] = flaky
    assert list(harness.map(flaky, range(100), retries=2)) == list(range(100))
    assert {x: n for x, n in tries.items() if n > 1} == dict.fromkeys(range(0, 100, 7), 3)
    tries.clear()
    with pytest.raises(ValueError):
        list(harness.map(flaky, range(100), retries=1))


def test_what_cannot_be_pickled_names_itself_and_harms_no_other(harness: Harness) -> None:
    bad = {"a": [1, threading.Lock()]}
    got = list(harness.map(str, [1, 2, bad, 4, threading.Lock(), 6], errors="return"))
    assert [got[i] for i in (0, 1, 3, 5)] == ["1", "2", "4", "6"]
    first = got[2].exception
    assert isinstance(first, UserCodeError)
    assert "call 2 of " in first.message
    assert "['a'][1]" in first.message
    assert got[4].argument_index == 4


def test_an_endless_source_of_what_cannot_be_pickled_ends_with_the_first(harness: Harness) -> None:
    with pytest.raises(UserCodeError, match="call 0 of str"):
        next(harness.map(str, (threading.Lock() for _ in itertools.count())))


class Unreadable:
    def __init__(self, x: int) -> None:
        self.x = x

    def __reduce__(self) -> Any:
        return unread, (self.x,)


def unread(x: int) -> int:
    if x % 10 == 3:
        raise RuntimeError(f"{x} cannot be read")
    return x


def test_a_result_that_cannot_be_read_here_harms_no_other(harness: Harness) -> None:
    for ordered in (True, False):
        got = list(harness.map(Unreadable, range(200), errors="return", ordered=ordered))
        failed = {each.argument_index: each.exception for each in got if isinstance(each, CallError)}
        assert sorted(failed) == list(range(3, 200, 10))
        assert "cannot be read here" in str(failed[3])
        assert sorted(each for each in got if isinstance(each, int)) == [x for x in range(200) if x % 10 != 3]
    futures = [harness.submit(Unreadable, x) for x in range(50)]
    assert [x for x, future in enumerate(futures) if future.exception() is not None] == [3, 13, 23, 33, 43]


# --- large data -----------------------------------------------------------------------------------


def test_large_data_goes_by_files_and_is_writable(harness: Harness) -> None:
    arrays = [np.full(MIB // 4, float(x)) for x in range(5)]
    for x, array in enumerate(harness.map(double, arrays)):
        assert (array == 2.0 * x).all()
        array[0] = 7.0
    assert all((array == float(x)).all() for x, array in enumerate(arrays)), "ours are ours"
    wait_for(lambda: harness.left() == [])


def test_a_result_whose_file_is_lost_is_made_again(harness: Harness) -> None:
    lost: list[str] = []

    def lose(done: CellDone) -> list[CellDone]:
        if done.attached is not None and not lost:
            lost.append(done.attached.name)
            os.unlink(os.path.join(harness.server.staging, done.attached.name))
        return [done]

    harness.server.results = lose
    results = list(harness.map(double, [np.ones(MIB)] * 3))
    assert len(results) == 3
    assert all((each == 2.0).all() for each in results)
    assert lost
    assert len(harness.server.cells) == 4
    wait_for(lambda: harness.left() == [])


def test_a_source_that_fails_leaves_no_files(harness: Harness) -> None:
    def source() -> Iterator[Any]:
        yield np.ones(MIB)
        yield np.ones(MIB)
        raise LookupError("no more")

    with pytest.raises(LookupError):
        list(harness.map(double, source()))
    wait_for(lambda: not any(name.startswith("arguments") for name in harness.left()))


def test_a_function_too_large_to_be_sent_harms_no_other(harness: Harness) -> None:
    large = np.ones(9 * MIB)
    for _ in range(2):
        with pytest.raises(UsageError, match=r"has 72 MB, with the variables.*at most 63 MB can be sent"):
            list(harness.map(lambda x: x + large[0], [1]))
    assert list(harness.map(double, [1])) == [2]


def test_small_arrays_are_writable_too(harness: Harness) -> None:
    for size in (5000, 3):
        (array,) = harness.map(double, [np.ones(size)])
        array[0] = 5.0
        assert array.tolist() == [5.0, *[2.0] * (size - 1)]


def test_arguments_in_memory_read_as_the_file_they_stand_for() -> None:
    value = [np.arange(100_000.0), b"x" * 10, np.arange(50_000, dtype="u1")]
    pickled = dump_list(value)
    store = MemoryData("")
    attached = store.put(pickled)
    assert len(attached.sizes) == 3
    end = offsets(attached.sizes)[1]
    for step in (7919, end + 5):
        whole = b"".join(store.read(attached.number, at, step) for at in range(0, end, step))
        assert len(whole) == end
        data, *buffers = parts_of(memoryview(bytearray(whole)), attached.sizes)
        again = load_list(data, buffers)
        assert (again[0] == value[0]).all()
        assert (again[2] == value[2]).all()
    store.remove(attached)
    with pytest.raises(NotAllowed):
        store.read(attached.number, 0, 1)


# --- submitted calls ------------------------------------------------------------------------------


def test_submitted_calls_and_their_callbacks(harness: Harness) -> None:
    seen: list[Any] = []
    futures = [harness.submit(pow, x, 2) for x in range(3000)]
    futures[10].add_done_callback(lambda future: seen.append(future.result()))
    assert [future.result(10) for future in futures] == [x * x for x in range(3000)]
    assert seen == [100]
    assert len(harness.server.cells) < 1000, "those that wait go together"
    assert harness.submit(int, "ff", base=16).result() == 255
    with pytest.raises(ValueError, match="invalid literal"):
        harness.submit(int, "x").result()
    with pytest.raises(UserCodeError, match="its argument 2"):
        harness.submit(max, 1, threading.Lock()).result()


def test_a_callback_that_waits_for_a_call_is_told_that_it_must_not(harness: Harness) -> None:
    seen: list[str] = []

    def callback(future: Future[Any]) -> None:
        other = harness.submit(pow, 2, 5)
        other.add_done_callback(lambda future: seen.append(future.result()))
        for wait in (other.result, lambda: next(harness.map(abs, [1]))):
            with pytest.raises(UsageError, match="waits for another call"):
                wait()

    future = harness.submit(lambda: time.sleep(0.1))
    future.add_done_callback(callback)
    wait_for(lambda: bool(seen))
    assert seen == [32]
    assert harness.submit(pow, 2, 4).result(5) == 16


def test_a_call_that_waits_to_be_sent_can_be_cancelled(harness: Harness) -> None:
    futures = [harness.submit(lambda: time.sleep(0.2)) for _ in range(20)]
    assert futures[-1].cancel()
    assert not futures[0].cancel()
    with pytest.raises(CancelledError):
        futures[-1].result()
    with pytest.raises(TimeoutError):
        futures[10].result(0.01)
    for future in futures[:-1]:
        future.cancel()


def test_an_executor_keeps_to_its_workers_and_ends(harness: Harness) -> None:
    at_once = 0
    most: list[int] = []
    lock = threading.Lock()

    def count(x: int) -> int:
        return x

    def counted(x: int) -> int:
        nonlocal at_once
        with lock:
            at_once += 1
            most.append(at_once)
        time.sleep(0.02)
        with lock:
            at_once -= 1
        return x

    harness.server.functions_by_name["count"] = counted
    executor = CallExecutor(
        Submits(harness.link, 1, broken), harness.functions.call, lambda: CallFuture(harness.link, None)
    )
    with executor as pool:
        assert list(pool.map(count, range(10))) == list(range(10))
        with pytest.raises(ValueError):
            pool.map(count, [1], chunksize=0)
    assert max(most) == 1
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(count, 1)


def test_a_closure_that_has_changed_is_pickled_anew(harness: Harness) -> None:
    number = 1
    items = [1]

    def function() -> tuple[int, list[int]]:
        return number, items

    assert harness.submit(function).result() == (1, [1])
    sent = len(harness.link._functions)
    assert harness.submit(function).result() == (1, [1])
    assert len(harness.link._functions) == sent
    number = 2
    assert harness.submit(function).result() == (2, [1])
    items.append(5)
    assert harness.submit(function).result() == (2, [1, 5])


def test_functions_that_differ_in_their_closures_alone_are_not_kept_for_each_call(harness: Harness) -> None:
    sent = len(harness.link._functions)
    futures = [harness.submit(lambda y, x=x, **named: (x, y, named), x + 1, z=x) for x in range(300)]
    assert [future.result() for future in futures] == [(x, x + 1, {"z": x}) for x in range(300)]
    futures = [harness.submit(functools.partial(pow, x), 2) for x in range(300)]
    assert [future.result() for future in futures] == [x * x for x in range(300)]
    assert len(harness.link._functions) - sent < 50
    with pytest.raises(UserCodeError, match="its argument 1 cannot be sent"):
        harness.submit(functools.partial(pow, 2000), threading.Lock()).result()
    with pytest.raises(ZeroDivisionError):
        harness.submit(functools.partial(divmod, 2), 0).result()


# --- ends -----------------------------------------------------------------------------------------


def test_the_end_of_the_server_reaches_everyone_who_waits(harness: Harness) -> None:
    futures = [harness.submit(lambda: time.sleep(0.5)) for _ in range(20)]
    results = harness.map(lambda x: time.sleep(0.5), range(10))
    threading.Timer(0.1, harness.server.end).start()
    with pytest.raises(CortexError):
        next(results)
    for future in futures:
        assert isinstance(future.exception(5), CortexError)
    with pytest.raises(ServerDied):
        harness.submit(abs, 1)
    with pytest.raises(ServerDied):
        next(harness.map(abs, [1]))


def test_closing_waits_for_what_was_submitted_and_ends_what_is_not_read(harness: Harness) -> None:
    futures = [harness.submit(lambda: time.sleep(0.05) or 5) for _ in range(20)]
    results = harness.map(lambda x: time.sleep(0.05) or x, range(1000))
    assert next(results) == 0
    harness.link.close()
    assert [future.result(0) for future in futures] == [5] * 20
    with pytest.raises(Cancelled):
        list(results)
    assert not harness.link._thread.is_alive()


def test_numbers_of_what_was_done(harness: Harness) -> None:
    list(harness.map(lambda x: 1 // x, [1, 0, 1], errors="return"))
    numbers = harness.link.numbers
    assert (numbers.sent, numbers.done, numbers.failed) == (3, 3, 1)


def test_what_is_still_to_come_is_told(harness: Harness) -> None:
    list(harness.map(abs, range(100)))
    assert harness.server.coming[0] == 100 - sum(cell.count for cell in harness.server.cells[:6])
    assert harness.server.coming[-1] == 0
    list(harness.map(abs, iter(range(100))))
    assert -1 in harness.server.coming
