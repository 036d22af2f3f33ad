"""`cortex.Client` with the real processes of this machine, and of a cluster: what its user sees."""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import cortex
from cortex.errors import ExecutorDied, JobFileError, TaskTimeout, UsageError
from cortex.limits import FUNCTIONS_SENT_MAX, MIB
from cortex.wire.messages import CallPrinted

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cortex.Client]:
    spill = tmp_path_factory.mktemp("spill")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORTEX_SPILL_DIRS", os.fspath(spill))
        with cortex.Client(slots=2) as client:
            yield client
    assert list(spill.iterdir()) == [], "nothing is left"


@pytest.fixture(scope="module")
def cluster() -> Iterator[cortex.LocalCluster]:
    with cortex.LocalCluster(nodes=2) as cluster:
        yield cluster


def add(x: int, y: int = 1) -> int:
    return x + y


# --- this machine ---------------------------------------------------------------------------------


def test_maps(client: cortex.Client) -> None:
    assert list(client.map(add, range(2000))) == list(range(1, 2001))
    assert list(client.map(add, [1, 2, 3], [10, 20])) == [11, 22]
    assert list(client.starmap(add, [(1, 2), (3, 4)])) == [3, 7]
    assert sorted(client.imap_unordered(add, range(100))) == list(range(1, 101))
    assert list(client.map(add, [])) == []
    ten = 10
    assert list(client.map(lambda x: x * ten, itertools.islice(itertools.count(), 4))) == [0, 10, 20, 30]


def test_a_function_for_each_call_fills_no_memory_and_old_ones_still_run(client: cortex.Client) -> None:
    functions = [eval(f"lambda x: x + {number}") for number in range(FUNCTIONS_SENT_MAX + 300)]
    futures = [client.submit(function, 1) for function in functions]
    assert [future.result() for future in futures] == [1 + number for number in range(len(functions))]
    link = client._calls()._open().link
    assert 0 < len(link._functions) <= FUNCTIONS_SENT_MAX  # type: ignore[attr-defined]
    assert client.submit(functions[0], 5).result() == 5  # forgotten since, and sent anew
    assert list(client.map(functions[1], range(3))) == [1, 2, 3]


def test_for_each(client: cortex.Client) -> None:
    seen: list[int] = []
    counts = client.for_each(add, range(500), callback=seen.append)
    assert (counts.done, counts.failed) == (500, 0)
    assert sorted(seen) == list(range(1, 501))
    assert client.for_each(add, range(500)) == cortex.CallCounts(500)
    counts = client.for_each(lambda x: 1 // x, [1, 0, 1, 0], errors="return")
    assert counts == cortex.CallCounts(4, 2)
    with pytest.raises(ExceptionGroup):
        client.for_each(lambda x: 1 // x, [1, 0, 1, 0], errors="collect")
    with pytest.raises(ZeroDivisionError):
        client.for_each(lambda x: 1 // x, [1, 0, 1, 0])


def test_submits(client: cortex.Client) -> None:
    futures = [client.submit(add, x, y=5) for x in range(300)]
    assert [future.result() for future in futures] == [x + 5 for x in range(300)]
    assert {future.result() for future in client.as_completed(futures)} == {x + 5 for x in range(300)}
    with client.executor() as pool:
        assert list(pool.map(add, range(10), range(10))) == [2 * x for x in range(10)]
    assert client.submit(add, 1).result() == 2, "an executor's end is not the client's"


class Point:
    def __init__(self, x: int) -> None:
        self.x = x

    def moved(self, by: int) -> Point:
        return Point(self.x + by)


def test_classes_of_the_caller_go_and_come_as_themselves(client: cortex.Client) -> None:
    points = list(client.map(lambda point: point.moved(1), [Point(x) for x in range(3)]))
    assert [type(point) for point in points] == [Point] * 3
    assert [point.x for point in points] == [1, 2, 3]
    assert client.submit(Point(5).moved, 2).result().x == 7


def test_a_failing_call_shows_both_tracebacks(client: cortex.Client) -> None:
    with pytest.raises(KeyError) as caught:
        list(client.map(lambda x: {}[x], ["missing"]))
    assert "lambda x: {}[x]" in str(caught.value.__cause__)
    (failed,) = client.map(lambda x: {}[x], ["missing"], errors="return")
    assert isinstance(failed, cortex.CallError)
    assert "lambda x: {}[x]" in failed.traceback
    again = pickle.loads(pickle.dumps(failed))
    assert (again.argument_index, repr(again.exception)) == (0, repr(failed.exception))


def test_a_call_that_takes_too_long_or_ends_its_process_harms_no_other(client: cortex.Client) -> None:
    got = list(client.map(lambda x: time.sleep(30) if x == 2 else x, range(8), timeout=0.3, errors="return"))
    assert [x for x in got if isinstance(x, int)] == [0, 1, 3, 4, 5, 6, 7]
    assert isinstance(got[2].exception, TaskTimeout)
    got = list(client.map(lambda x: os._exit(3) if x == 2 else x, range(8), errors="return"))
    assert [x for x in got if isinstance(x, int)] == [0, 1, 3, 4, 5, 6, 7]
    assert isinstance(got[2].exception, ExecutorDied)


def test_a_limit_of_time_holds_for_code_that_keeps_the_interpreter(client: cortex.Client) -> None:
    def runs_away(x: int) -> int:
        return x if x != 3 else len(re.match(r"(a+)+$", "a" * 60 + "b") or "")

    results = list(client.map(runs_away, range(6), timeout=0.5, errors="return"))
    assert [each for each in results if isinstance(each, int)] == [0, 1, 2, 4, 5]
    assert isinstance(results[3].exception, TaskTimeout)
    stack = results[3].exception.details["stack"].splitlines()
    assert "in match" in stack[0]
    assert (
        stack[-1].strip() == f'File "{__file__}", line {runs_away.__code__.co_firstlineno + 1} in runs_away'
    )


def test_executors_may_die_and_every_result_comes_once(client: cortex.Client, tmp_path: Path) -> None:
    def die_once(x: int) -> int:
        mark = tmp_path / str(x)
        if x % 100 == 50 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    assert list(client.map(die_once, range(400))) == list(range(400))
    assert len(list(tmp_path.iterdir())) == 4


def test_retries(client: cortex.Client, tmp_path: Path) -> None:
    def flaky(x: int) -> int:
        tries = len(list(tmp_path.glob(f"{x}-*")))
        (tmp_path / f"{x}-{tries}").touch()
        if tries < 2:
            raise OSError("try again")
        return x

    assert list(client.map(flaky, range(5), retries=2)) == list(range(5))


def test_large_data_is_writable_and_leaves_nothing(client: cortex.Client) -> None:
    array = np.arange(4 * MIB, dtype="f8")

    def function(x: Any) -> Any:
        x[0] = 5.0
        return x

    result = client.submit(function, array).result()
    assert array[0] == 0.0
    assert result[0] == 5.0
    result[1] = 7.0
    assert (result[2:] == array[2:]).all()
    table = pa.table({"x": array})
    (again,) = client.map(lambda table: table.slice(1), [table])
    assert again.equals(table.slice(1))
    folder = client._calls()._opened.link.store.folder  # type: ignore[union-attr]
    deadline = time.monotonic() + 10
    while os.listdir(folder) != ["owner.lock"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_calls_print(client: cortex.Client, capfd: pytest.CaptureFixture[str]) -> None:
    def talk(x: int) -> int:
        print(f"I am {x}\nand done")
        return x

    assert list(client.map(talk, range(3))) == [0, 1, 2]
    said = capfd.readouterr().out
    for x in range(3):
        tag = f"[{talk.__qualname__} #{x}] "
        assert f"{tag}I am {x}\n{tag}and done\n" in said
    heard: list[tuple[str, CallPrinted]] = []
    client.on_output = lambda name, printed: heard.append((name, printed))
    try:
        assert list(client.map(talk, [7])) == [7]
        assert [(name, printed.text) for name, printed in heard] == [
            (talk.__qualname__, "I am 7\nand done\n")
        ]
        assert capfd.readouterr().out == ""
        client.on_output = lambda name, printed: 1 // 0  # type: ignore[assignment, return-value]
        assert list(client.map(talk, range(10))) == list(range(10))
        assert "ZeroDivisionError" in capfd.readouterr().err
    finally:
        client.on_output = None


def test_calls_that_submit_calls(client: cortex.Client) -> None:
    def total(n: int) -> int:
        return sum(client.map(add, range(n)))

    assert list(client.map(total, [10, 20, 30])) == [55, 210, 465]

    def fibonacci(n: int) -> int:
        if n < 2:
            return n
        with cortex.Client() as inner:
            futures = [inner.submit(fibonacci, n - 1), inner.submit(fibonacci, n - 2)]
            return sum(int(future.result()) for future in inner.as_completed(futures))

    assert client.submit(fibonacci, 7).result() == 13

    def pooled(n: int) -> list[int]:
        with client.executor() as pool:
            return list(pool.map(add, range(n)))

    assert list(client.map(pooled, [4] * 4)) == [[1, 2, 3, 4]] * 4

    def failing(n: int) -> None:
        client.submit(divmod, n, 0).result()

    with pytest.raises(ZeroDivisionError):
        client.submit(failing, 1).result()


def test_calls_that_calls_have_submitted_harm_no_other(
    client: cortex.Client, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever waits for one that takes its executor along does not go with it."""

    def dies(x: int) -> int:
        print("here is", x)
        if x == 1:
            os._exit(3)
        return x

    def words(results: Iterator[Any]) -> list[Any]:
        return [
            type(each.exception).__name__ if isinstance(each, cortex.CallError) else each for each in results
        ]

    def of_dying(_: int) -> list[Any]:
        return words(client.map(dies, range(3), errors="return"))

    def of_slow(_: int) -> list[Any]:
        return words(client.map(time.sleep, [0, 60, 0], timeout=0.5, errors="return"))

    assert client.submit(of_dying, 0).result(60) == [0, "ExecutorDied", 2]
    assert f"[{dies.__qualname__} #2] here is 2\n" in capfd.readouterr().out
    assert client.submit(of_slow, 0).result(60) == [None, "TaskTimeout", None]


def test_with_one_slot_a_call_ends_with_the_one_it_waits_for(tmp_path: Path) -> None:
    def of_slow(_: int) -> list[Any]:
        return list(client.map(time.sleep, [60], timeout=0.5))

    with cortex.Client(slots=1) as client:
        with pytest.raises(TaskTimeout, match="ended with its executor, in which it waited: call 0 of sleep"):
            client.submit(of_slow, 0).result(60)
        assert client.submit(add, 1).result(60) == 2


def test_with_one_slot_futures_are_waited_for_by_the_standard_library(tmp_path: Path) -> None:
    """Whatever a call waits with, it runs what it waits for: nobody else could."""

    def waits(_: int) -> list[Any]:
        futures = [client.submit(add, number) for number in range(3)]
        done, left = concurrent.futures.wait(futures, 30)
        assert (len(done), len(left)) == (3, 0)
        first = concurrent.futures.wait([client.submit(add, 9)], 30, concurrent.futures.FIRST_COMPLETED)
        some = [client.submit(add, number) for number in range(10, 14)]
        ended = [future.result() for future in concurrent.futures.as_completed(some, 30)]
        with client.executor() as pool:
            mapped = list(pool.map(add, range(3)))
        asleep = client.submit(time.sleep, 5)
        late = concurrent.futures.wait([asleep], 0.0)
        assert late.not_done == {asleep}
        return [sorted(each.result() for each in done), len(first.done), sorted(ended), mapped]

    with cortex.Client(slots=1) as client:
        assert client.submit(waits, 0).result(60) == [[1, 2, 3], 1, [11, 12, 13, 14], [1, 2, 3]]


def test_large_data_between_calls(client: cortex.Client) -> None:
    def outer(array: Any) -> float:
        inner = client.submit(lambda x: x * 2, array).result()
        inner[0] = 1.0
        return float(inner.sum())

    assert client.submit(outer, np.ones(MIB)).result() == 2.0 * MIB - 1.0


def test_two_threads_share_a_client(client: cortex.Client) -> None:
    results: dict[int, list[int]] = {}

    def work(by: int) -> None:
        results[by] = list(client.map(add, range(5000), itertools.repeat(by)))

    threads = [threading.Thread(target=work, args=(by,)) for by in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {by: [x + by for x in range(5000)] for by in (1, 2, 3)}


def test_a_function_that_is_too_large_says_so_and_harms_no_other(client: cortex.Client) -> None:
    data = bytes(70_000_000)

    def uses_data(x: int) -> int:
        return len(data) + x

    for call in (lambda: list(client.map(uses_data, [1])), lambda: client.submit(uses_data, 1).result()):
        with pytest.raises(
            UsageError, match=r"uses_data has 66\.8 MB, with the variables, .* at most 63 MB"
        ) as found:
            call()
        assert "as an argument" in found.value.cure
    assert client.submit(len, data).result() == len(data)


def test_ctrl_c_in_an_executor_does_not_wait_for_what_was_not_sent(client: cortex.Client) -> None:
    futures = []

    def interrupted() -> None:
        with client.executor() as pool:
            futures.extend(pool.submit(time.sleep, 0.2) for _ in range(500))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(future.done() for future in futures)
    assert sum(future.cancelled() for future in futures) > 400


def test_short_calls_do_not_wait(client: cortex.Client) -> None:
    client.submit(add, 1).result()
    taken = []
    for x in range(200):
        began = time.perf_counter()
        assert client.submit(add, x).result() == x + 1
        taken.append(time.perf_counter() - began)
    assert sorted(taken)[100] < 0.02, "a millisecond on a quiet machine"


def test_mistakes_are_said_at_once(client: cortex.Client) -> None:
    with pytest.raises(UsageError, match="is no function"):
        client.map(5, [1])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="give an iterable"):
        client.map(add)
    with pytest.raises(UsageError, match="errors="):
        client.map(add, [1], errors="ignore")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="timeout"):
        client.map(add, [1], timeout=0)
    with pytest.raises(UsageError, match="retries"):
        client.map(add, [1], retries=-1)
    with pytest.raises(JobFileError, match="slots"), cortex.Client(slots=-1) as other:
        other.submit(add, 1)
    with cortex.Client() as other:
        pass
    with pytest.raises(UsageError, match="closed"):
        other.submit(add, 1)


# --- ends -----------------------------------------------------------------------------------------


def script(tmp_path: Path, text: str) -> subprocess.Popen[str]:
    path = tmp_path / "script.py"
    path.write_text(
        "import os, sys, time, threading, signal\nimport cortex\n"
        "def add(x): return x + 1\n"
        "def slow(x):\n    time.sleep(0.05)\n    return x\n" + textwrap.dedent(text)
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.fspath(ROOT),
        "CORTEX_SPILL_DIRS": os.fspath(tmp_path / "spill"),
        "CORTEX_SLOTS": "2",
    }
    command = [sys.executable, "-W", "ignore::DeprecationWarning", os.fspath(path)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=tmp_path)


def said_by(process: subprocess.Popen[str], tmp_path: Path) -> str:
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert errors == ""
    assert os.listdir(tmp_path / "spill") == []
    return out


def test_a_client_that_nobody_closes_ends_in_order(tmp_path: Path) -> None:
    process = script(
        tmp_path,
        """
        client = cortex.Client()
        results = client.map(slow, range(1000))
        print(next(results))
        for x in range(20):
            client.submit(slow, x).add_done_callback(lambda future: print("done", future.result()))
        """,
    )
    lines = said_by(process, tmp_path).splitlines()
    assert lines[0] == "0"
    assert sorted(int(line.split()[1]) for line in lines[1:]) == list(range(20))


def test_ctrl_c_ends_the_map_and_not_the_client(tmp_path: Path) -> None:
    process = script(
        tmp_path,
        """
        with cortex.Client() as client:
            print(list(client.map(add, range(3))), flush=True)
            for _ in range(3):
                threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
                try:
                    for x in client.map(slow, range(10000)):
                        pass
                except KeyboardInterrupt:
                    began = time.monotonic()
                    print(list(client.map(add, range(3))), time.monotonic() - began < 5)
        """,
    )
    assert said_by(process, tmp_path) == "[1, 2, 3]\n" + "[1, 2, 3] True\n" * 3


def test_closing_does_not_wait_for_calls_that_nobody_wants(tmp_path: Path) -> None:
    process = script(
        tmp_path,
        """
        with cortex.Client() as client:
            for x in client.imap_unordered(time.sleep, [0.01] * 4 + [100] * 10):
                break
            began = time.monotonic()
        print(time.monotonic() - began < 10)
        """,
    )
    assert said_by(process, tmp_path) == "True\n"


def test_a_forked_process_is_told_to_make_its_own(tmp_path: Path) -> None:
    process = script(
        tmp_path,
        """
        client = cortex.Client()
        print(client.submit(add, 1).result(), flush=True)
        child = os.fork()
        if not child:
            for use in (lambda: client.submit(add, 1), lambda: list(client.map(add, [1]))):
                try:
                    use()
                except cortex.CortexError as error:
                    print(error.message, flush=True)
            with cortex.Client() as own:
                print("own", own.submit(add, 4).result(), flush=True)
            sys.exit()
        os.waitpid(child, 0)
        print(client.submit(add, 2).result())
        """,
    )
    lines = said_by(process, tmp_path).splitlines()
    told = "this client was opened in the process that this one was forked from"
    assert lines == ["2", told, told, "own 5", "3"]


def test_an_exception_in_the_with_block_does_not_wait_for_calls(tmp_path: Path) -> None:
    process = script(
        tmp_path,
        """
        began = time.monotonic()
        try:
            with cortex.Client() as client:
                futures = [client.submit(time.sleep, 30) for _ in range(10)]
                raise LookupError
        except LookupError:
            print(time.monotonic() - began < 15, {type(each.exception(0)).__name__ for each in futures})
        """,
    )
    assert said_by(process, tmp_path) == "True {'Cancelled'}\n"


# --- a cluster ------------------------------------------------------------------------------------


def test_on_a_cluster_modules_travel_and_large_data_goes_both_ways(
    cluster: cortex.LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "travelling_helper.py").write_text("def triple(x):\n    return 3 * x\n")
    monkeypatch.syspath_prepend(os.fspath(tmp_path))

    with cluster.client as client:
        assert list(client.map(add, range(1000))) == list(range(1, 1001))
        array = np.arange(2 * MIB, dtype="f8")
        result = client.submit(lambda x: x + 1, array).result()
        result[0] = 5.0
        assert (result[1:] == array[1:] + 1).all()
        opened = client._calls()._opened
        assert opened is not None
        assert os.listdir(opened.link.store.folder) == ["owner.lock"]  # type: ignore[union-attr]
        assert opened.link.store._parts == {}, "memory is held while it is in flight"  # type: ignore[union-attr]

        def total(n: int) -> int:
            return sum(client.map(add, range(n)))

        assert list(client.map(total, [10, 20])) == [55, 210]


def test_a_server_that_comes_back_has_every_call_done_once(cluster: cortex.LocalCluster) -> None:
    def slow(x: int) -> int:
        time.sleep(0.02)
        return x

    with cluster.client as client:
        futures = [client.submit(slow, x) for x in range(100)]
        results = client.map(slow, range(200))
        assert next(results) == 0
        assert cluster.server is not None
        cluster.server.kill()
        cluster.server.wait()
        cluster.start_server()
        assert list(results) == list(range(1, 200))
        assert [future.result(60) for future in futures] == list(range(100))
