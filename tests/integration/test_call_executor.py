"""`Client.executor`: what CPython's cases look for in processes that are not here, and what it adds.

The cases themselves are run where Python comes with them: `test_cpython_futures`.
"""

from __future__ import annotations

import gc
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest

import cortex

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def client() -> Iterator[cortex.Client]:
    with cortex.Client(slots=2) as client:
        yield client


def nap(seconds: float) -> tuple[float, float]:
    """When it began and ended."""
    begun = time.monotonic()
    time.sleep(seconds)
    return begun, time.monotonic()


def test_the_with_block_ends_when_all_is_done(client: cortex.Client) -> None:
    with client.executor(max_workers=5) as executor:
        results = executor.map(abs, range(-5, 5))
        napping = [executor.submit(nap, 0.1) for _ in range(4)]
    assert all(future.done() for future in napping)
    assert list(results) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]


def test_shut_down_without_waiting(client: cortex.Client) -> None:
    executor = client.executor()
    results = executor.map(abs, range(-500, 500))
    napping = executor.submit(nap, 0.3)
    executor.shutdown(wait=False)
    assert not napping.done()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(abs, -1)
    assert list(results) == [abs(x) for x in range(-500, 500)]
    assert napping.result(60)


def test_an_executor_that_nobody_holds_any_more(client: cortex.Client) -> None:
    executor = client.executor()
    results = executor.map(abs, range(-500, 500))
    del executor
    gc.collect()
    assert list(results) == [abs(x) for x in range(-500, 500)]


def test_what_waits_is_cancelled(client: cortex.Client) -> None:
    executor = client.executor(max_workers=2)
    futures = [executor.submit(nap, 0.1) for _ in range(50)]
    executor.shutdown(cancel_futures=True)
    assert sum(future.cancelled() for future in futures) > 20
    ran = [future for future in futures if not future.cancelled()]
    assert ran
    assert all(future.done() and future.exception() is None for future in ran)


def test_no_more_calls_at_a_time_than_workers(client: cortex.Client) -> None:
    with client.executor(max_workers=1) as one:
        naps = sorted(future.result(60) for future in [one.submit(nap, 0.05) for _ in range(6)])
    assert all(end <= begun for (_, end), (begun, _) in itertools.pairwise(naps))


def test_executors_of_one_client_end_alone(client: cortex.Client) -> None:
    first, second = client.executor(), client.executor()
    first.shutdown()
    assert second.submit(abs, -2).result(60) == 2
    assert client.submit(abs, -3).result(60) == 3
    second.shutdown()


def test_futures_of_several_executors_are_waited_for_together(client: cortex.Client) -> None:
    with client.executor() as first, client.executor() as second:
        futures = [first.submit(abs, -1), second.submit(abs, -2), client.submit(abs, -3)]
        done, waiting = wait(futures, timeout=60)
    assert (len(done), len(waiting)) == (3, 0)
    assert sorted(future.result() for future in done) == [1, 2, 3]


def test_a_program_that_ends_waits_for_what_it_has_submitted(tmp_path: Path) -> None:
    """And one that submits at its very end is told that it is too late."""
    script = tmp_path / "program.py"
    script.write_text(
        "import atexit, time\n"
        "@atexit.register\n"
        "def late():\n"
        "    try:\n"
        "        executor.submit(abs, -1)\n"
        "    except RuntimeError as error:\n"
        "        print(error)\n"
        "import cortex\n"
        "if __name__ == '__main__':\n"
        "    executor = cortex.Client(slots=1).executor()\n"
        "    executor.submit(time.sleep, 0.3).add_done_callback(lambda future: print('done'))\n"
        "    executor.shutdown(wait=False)\n"
        "    executor = cortex.Client(slots=1).executor()\n"
        "    executor.submit(abs, -1).result()\n"
    )
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first == "done"
    assert second.startswith("cannot schedule new futures after")
