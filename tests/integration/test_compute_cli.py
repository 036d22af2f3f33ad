"""``cortex compute`` as a person runs it: real processes, every source, mode and way to fail."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FUNCTIONS = """
import os
import signal
import time

import beside


class Thing:
    pass


def spread(*args, **kwargs):
    return [list(args), kwargs]


def one(x):
    return x


def double(x):
    return beside.twice(x)


def slow_first(x):
    time.sleep(1.0 if x == 0 else 0.0)
    return x


def picky(x):
    if x == 3:
        raise ValueError(f"no {x}s")
    return x


def odd_results(x):
    return {0: 0, 1: {1, 2}, 2: Thing(), 3: (lambda: 1), 4: 4}[x]


def talk(x):
    print("hello from", x)
    return x


def note(x):
    with open(os.path.join(os.environ["NOTES"], str(x)), "a") as file:
        file.write("x")


def wait(x):
    with open(os.path.join(os.environ["NOTES"], str(x)), "a") as file:
        file.write("x")
    time.sleep(60)


def forget(x):
    time.sleep(30 if x == 1 else 0)
    return x


def nap(x):
    time.sleep(0.02)
    return x


def once(x):
    path = os.path.join(os.environ["NOTES"], str(x))
    if not os.path.exists(path):
        open(path, "w").close()
        raise OSError("not yet")
    return x


def die(x):
    if x == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return x
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A working folder; afterwards no run has left a temporary file behind."""
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    (tmp_path / "beside.py").write_text("def twice(x):\n    return 2 * x\n")
    (tmp_path / "notes").mkdir()
    yield tmp_path
    spill = tmp_path / "state" / "spill"
    assert not spill.exists() or not list(spill.iterdir())
    assert not list(tmp_path.glob(".*.partial"))


def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CORTEX_", "JPY_"))}
    return kept | {"CORTEX_HOME": str(home / "state"), "PYTHONPATH": str(ROOT), "CORTEX_SLOTS": "2"}


def config(home: Path, function: str, arguments: str, *more: str) -> None:
    lines = [f"function: functions.py:{function}", f"arguments: {arguments}", *more]
    (home / "c.yaml").write_text("\n".join(lines) + "\n")


def compute(home: Path, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "cortex", "compute", "c.yaml", *options],
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr + done.stdout
    return done


def lines_of(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def results(done: subprocess.CompletedProcess[str]) -> list[Any]:
    lines = lines_of(done.stdout)
    assert [each["call"] for each in lines] == list(range(len(lines)))
    return [each["result"] for each in lines]


# --- sources ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "calls"),
    [
        ("[1, two, [3, 4]]", [[[1], {}], [["two"], {}], [[[3, 4]], {}]]),
        ("{list: [[1, 2], {x: 3}], star: true}", [[[1, 2], {}], [[], {"x": 3}]]),
        ("{range: [0, 500, 100]}", [[[n], {}] for n in range(0, 500, 100)]),
        ("{product: [[1, 2], [a]]}", [[[1, "a"], {}], [[2, "a"], {}]]),
        ("{product: {x: [1], y: {range: 2}}}", [[[], {"x": 1, "y": 0}], [[], {"x": 1, "y": 1}]]),
        ("{lines: in.jsonl}", [[[{"a": 1}], {}], [["b"], {}]]),
        ("{csv: in.csv, types: {x: int}}", [[[], {"x": 1, "y": "one"}], [[], {"x": None, "y": "none"}]]),
        ("{files: '*.txt'}", [[["@/a.txt"], {}], [["@/b.txt"], {}]]),
        ("[]", []),
    ],
)
def test_every_source(home: Path, arguments: str, calls: list[Any]) -> None:
    (home / "in.jsonl").write_text('{"a": 1}\n"b"\n')
    (home / "in.csv").write_text("x,y\n1,one\n,none\n")
    for name in ("b.txt", "a.txt"):
        (home / name).write_text("")
    config(home, "spread", arguments)
    done = compute(home)
    assert results(done) == json.loads(json.dumps(calls).replace("@", str(home)))
    assert f"arguments  {len(calls)}: " in done.stderr
    assert f"spread: {len(calls)} call{'' if len(calls) == 1 else 's'} done" in done.stderr


def test_many_calls_with_a_helper_module(home: Path) -> None:
    config(home, "double", "{range: 20000}", "output: out/r.jsonl")
    done = compute(home)
    assert done.stdout == ""
    lines = lines_of((home / "out" / "r.jsonl").read_text())
    assert lines == [{"call": n, "result": 2 * n} for n in range(20000)]
    assert f"{home}/out/r.jsonl: 20,000 lines" in done.stderr


def test_an_argument_that_cannot_be_read_ends_the_run_with_its_line(home: Path) -> None:
    (home / "in.jsonl").write_text("1\n2\noops\n")
    config(home, "one", "{lines: in.jsonl}", "output: r.jsonl", "errors: collect")
    done = compute(home, code=1)
    assert "a line is no JSON" in done.stderr
    assert "line: 3" in done.stderr
    assert not (home / "r.jsonl").exists()


# --- modes ------------------------------------------------------------------------------------------


def test_stream_gives_results_as_calls_complete(home: Path) -> None:
    config(home, "slow_first", "{range: 6}", "response_mode: stream")
    lines = lines_of(compute(home).stdout)
    assert lines[-1] == {"call": 0, "result": 0}
    assert sorted(each["call"] for each in lines) == list(range(6))
    assert all(each["call"] == each["result"] for each in lines)


def test_ordered_gives_them_in_order_and_collect_at_the_end(home: Path) -> None:
    config(home, "slow_first", "{range: 6}")
    assert results(compute(home)) == list(range(6))
    assert results(compute(home, "--response-mode", "collect")) == list(range(6))
    config(home, "picky", "[0, 1, 2, 3]")
    assert compute(home, "--response-mode", "collect", code=1).stdout == ""


def test_results_come_while_others_run(home: Path) -> None:
    config(home, "forget", "[0, 1]")
    process = subprocess.Popen(
        [sys.executable, "-m", "cortex", "compute", "c.yaml", "--quiet"],
        cwd=home, env=environment(home), stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == {"call": 0, "result": 0}
    assert process.poll() is None  # the second takes half a minute
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    process.stdout.close()


def test_none_only_counts(home: Path) -> None:
    config(home, "note", "{range: 30}", "response_mode: none", f"env: {{NOTES: {home / 'notes'}}}")
    done = compute(home)
    assert done.stdout == ""
    assert sorted(int(path.name) for path in (home / "notes").iterdir()) == list(range(30))
    assert "note: 30 calls done" in done.stderr
    config(home, "picky", "{range: 30}", "response_mode: none")
    failed = compute(home, "--errors", "collect", code=1)
    assert "call 3 failed: ValueError: no 3s" in failed.stderr
    assert "picky: 29 calls done, 1 failed" in failed.stderr


# --- output -----------------------------------------------------------------------------------------


def test_an_output_is_whole_and_replaced_only_on_demand(home: Path) -> None:
    config(home, "one", "[1]", "output: {path: r.jsonl, arguments: true}")
    compute(home)
    first = '{"call": 0, "arguments": 1, "result": 1}\n'
    assert (home / "r.jsonl").read_text() == first
    config(home, "one", "[2, 3]", "output: r.jsonl")
    assert "exists already" in compute(home, code=2).stderr
    assert (home / "r.jsonl").read_text() == first
    compute(home, "--overwrite")
    assert len(lines_of((home / "r.jsonl").read_text())) == 2
    config(home, "picky", "[1, 3]", "output: r.jsonl")
    compute(home, "--overwrite", code=1)
    assert len(lines_of((home / "r.jsonl").read_text())) == 2


def test_results_that_json_does_not_have(home: Path) -> None:
    config(home, "odd_results", "{range: 3}", "output: r.jsonl")
    assert "call 1 failed: its result cannot be written as JSON" in compute(home, code=1).stderr
    assert not (home / "r.jsonl").exists()
    compute(home, "--errors", "collect", code=1)
    assert lines_of((home / "r.jsonl").read_text()) == [{"call": 0, "result": 0}]
    assert [each["call"] for each in lines_of((home / "r.jsonl.failed").read_text())] == [1, 2]
    done = compute(home, "--values", "repr", "--overwrite")
    lines = lines_of((home / "r.jsonl").read_text())
    assert lines[1] == {"call": 1, "repr": "{1, 2}"}
    assert re.match(r"<functions.Thing object", lines[2]["repr"])
    assert not (home / "r.jsonl.failed").exists()  # of the run before
    assert "3 lines" in done.stderr


def test_a_result_that_cannot_be_pickled_harms_no_other(home: Path) -> None:
    config(home, "odd_results", "[0, 3, 4]", "errors: collect")
    done = compute(home, code=1)
    assert [each["result"] for each in lines_of(done.stdout)] in ([0, 4], [0, 4])
    assert "call 1 failed" in done.stderr
    assert "pickle" in done.stderr


def test_one_object_at_the_end(home: Path) -> None:
    config(home, "picky", "{range: 50}", "errors: collect")
    answer = json.loads(compute(home, "--json", code=1).stdout)
    assert answer.pop("seconds") > 0
    (failure,) = answer.pop("failures")
    assert (failure["call"], failure["error"]) == (3, "ValueError: no 3s")
    results = [{"call": n, "result": n} for n in range(50) if n != 3]
    assert answer == {
        "job": "picky", "response_mode": "ordered", "output": None, "done": 49, "failed": 1,
        "results": results[:40], "more": 9,
    }  # fmt: skip
    answer = json.loads(compute(home, "--json", "--output", "r.jsonl", "-q", code=1).stdout)
    assert answer["output"] == str(home / "r.jsonl")
    assert "results" not in answer
    assert lines_of((home / "r.jsonl").read_text()) == results
    answer = json.loads(compute(home, "--json", "--errors", "raise", code=1).stdout)
    assert answer["error"]["message"] == "call 3 failed: ValueError: no 3s"


# --- failures ---------------------------------------------------------------------------------------


def test_a_failing_call_ends_the_run_with_its_traceback(home: Path) -> None:
    config(home, "picky", "{range: 10}", "output: r.jsonl")
    done = compute(home, code=1)
    assert "error: call 3 failed: ValueError: no 3s" in done.stderr
    assert "arguments: 3" in done.stderr
    assert 'raise ValueError(f"no {x}s")' in done.stderr
    assert not (home / "r.jsonl").exists()
    assert not (home / "r.jsonl.failed").exists()


def test_failures_are_collected(home: Path) -> None:
    config(home, "picky", "[1, 3, 2, 3]", "output: r.jsonl", "errors: collect")
    done = compute(home, code=1)
    assert lines_of((home / "r.jsonl").read_text()) == [{"call": 0, "result": 1}, {"call": 2, "result": 2}]
    failed = lines_of((home / "r.jsonl.failed").read_text())
    assert [(each["call"], each["arguments"], each["error"]) for each in failed] == [
        (1, 3, "ValueError: no 3s"),
        (3, 3, "ValueError: no 3s"),
    ]
    assert "in picky" in failed[0]["traceback"]
    assert f"error: 2 calls failed: {home}/r.jsonl.failed" in done.stderr
    compute(home, "--output", "", code=2)


def test_retries(home: Path) -> None:
    config(home, "once", "[1, 2]", f"env: {{NOTES: {home / 'notes'}}}")
    assert "OSError: not yet" in compute(home, code=1).stderr
    for path in (home / "notes").iterdir():
        path.unlink()
    assert results(compute(home, "--retries", "1")) == [1, 2]


def test_a_call_that_takes_too_long(home: Path) -> None:
    config(home, "forget", "[0, 1, 2]", "errors: collect", "timeout: 1s")
    began = time.monotonic()
    done = compute(home, code=1)
    assert [each["call"] for each in lines_of(done.stdout)] == [0, 2]
    assert "call 1 failed" in done.stderr
    assert time.monotonic() - began < 25


def test_a_call_that_kills_its_process(home: Path) -> None:
    config(home, "die", "[0, 1, 2]", "errors: collect")
    done = compute(home, code=1)
    assert [each["call"] for each in lines_of(done.stdout)] == [0, 2]
    assert "call 1 failed" in done.stderr
    assert "SIGKILL" in done.stderr


def test_what_calls_print_is_told_with_their_number(home: Path) -> None:
    config(home, "talk", "[a, b]")
    done = compute(home)
    assert results(done) == ["a", "b"]
    assert "[talk #0] hello from a" in done.stderr
    assert "[talk #1] hello from b" in done.stderr


def test_a_function_that_cannot_be_sent_is_named(home: Path) -> None:
    (home / "functions.py").write_text(
        "import threading\nLOCK = threading.Lock()\ndef locked(x):\n    with LOCK:\n        return x\n"
    )
    config(home, "locked", "[1]", "output: r.jsonl")
    done = compute(home, code=1)
    assert "the global 'LOCK' that locked uses cannot be sent to the executors" in done.stderr
    assert "make it in the function" in done.stderr
    assert not (home / "r.jsonl").exists()


def test_what_a_module_prints_is_no_result(home: Path) -> None:
    (home / "functions.py").write_text("print('loading')\ndef one(x):\n    return x\n")
    config(home, "one", "[1]")
    done = compute(home)
    assert results(done) == [1]
    assert "loading" in done.stderr


def test_mistakes_in_the_file_have_their_lines(home: Path) -> None:
    (home / "c.yaml").write_text("function: functions.py:one\nargumnets: [1]\nretries: many\n")
    done = compute(home, code=2)
    assert "c.yaml:2:1: unknown key `argumnets`; did you mean arguments?" in done.stderr
    assert "c.yaml:3:10: retries: 'many' is not a number of retries" in done.stderr
    config(home, "on", "[1]")
    assert "defines no 'on'" in compute(home, code=2).stderr


# --- the person -------------------------------------------------------------------------------------


class Terminal:
    """The command with a terminal as its standard input and error."""

    def __init__(self, home: Path, *options: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cortex", "compute", "c.yaml", *options],
            cwd=home, env={**environment(home), "TERM": "xterm"}, stdin=slave, stderr=slave,
            stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.said = ""

    def read_until(self, pattern: str) -> None:
        deadline = time.monotonic() + 60
        while not re.search(pattern, self.said):
            assert time.monotonic() < deadline, self.said
            assert self._read(), self.said

    def answer(self, text: str) -> None:
        os.write(self._master, text.encode())

    def end(self) -> tuple[int, str]:
        assert self.process.stdout is not None
        out = self.process.stdout.read()
        while self._read():
            pass
        code = self.process.wait(60)
        os.close(self._master)
        return code, out

    def _read(self) -> bool:
        if not select.select([self._master], [], [], 60)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: the other side is closed
            return False
        self.said += data.decode()
        return bool(data)


def test_on_a_terminal_the_plan_is_confirmed_once(home: Path) -> None:
    config(home, "one", "[1, 2]", "output: r.jsonl")
    terminal = Terminal(home)
    terminal.read_until(r"Run it\? \[Y/n\]")
    assert "where      this machine: 2 slots" in terminal.said
    terminal.answer("n\n")
    assert terminal.end() == (130, "")
    assert not (home / "r.jsonl").exists()
    for answer in ("\n", "y\n"):
        terminal = Terminal(home, "--overwrite")
        terminal.read_until(r"Run it\?")
        terminal.answer(answer)
        assert terminal.end()[0] == 0
        assert terminal.said.count("Run it?") == 1
        assert len(lines_of((home / "r.jsonl").read_text())) == 2


def test_yes_and_quiet_do_not_ask(home: Path) -> None:
    config(home, "one", "[1, 2]")
    terminal = Terminal(home, "--yes")
    assert terminal.end() == (0, '{"call": 0, "result": 1}\n{"call": 1, "result": 2}\n')
    assert "where      this machine" in terminal.said
    assert "Run it?" not in terminal.said
    terminal = Terminal(home, "-q")
    assert terminal.end()[0] == 0
    assert terminal.said == ""


def test_progress_on_a_terminal(home: Path) -> None:
    config(home, "forget", "[0, 0, 1]")
    terminal = Terminal(home, "--yes")
    terminal.read_until(r"2 of 3 · 1 running")
    os.killpg(terminal.process.pid, signal.SIGINT)
    assert terminal.end()[0] == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(home: Path, number: signal.Signals) -> None:
    notes = home / "notes"
    config(home, "wait", "{range: 100}", "output: r.jsonl", f"env: {{NOTES: {notes}}}")
    process = subprocess.Popen(
        [sys.executable, "-m", "cortex", "compute", "c.yaml"],
        cwd=home, env=environment(home), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(notes.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(notes.iterdir())
    began = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 143), said
    assert time.monotonic() - began < 15
    assert not (home / "r.jsonl").exists()
    assert len(list(notes.iterdir())) <= 3


def test_a_reader_that_has_seen_enough_ends_it(home: Path) -> None:
    config(home, "one", "{range: 1000000000}")
    command = f"{sys.executable} -m cortex compute c.yaml --quiet | head -n 3"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=home, env=environment(home), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert results(done) == [0, 1, 2]


# --- on a cluster -----------------------------------------------------------------------------------


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """What it says on standard error, up to that (a line that is written again is read as another line)."""
    assert process.stderr is not None
    said = ""
    while not re.search(pattern, said):
        more = process.stderr.read(10)
        assert more, said
        said += more
    return said


def test_on_a_cluster(home: Path) -> None:
    import cortex

    config(home, "double", "{range: 5000}", "output: r.jsonl")
    with cortex.LocalCluster(nodes=2) as cluster:
        where = ("--server", cluster.address, "--home", str(cluster.folder / "server"))
        done = compute(home, *where)
        assert f"where      the cluster at {cluster.address}: 2 nodes, 2 slots" in done.stderr
        lines = lines_of((home / "r.jsonl").read_text())
        assert lines == [{"call": n, "result": 2 * n} for n in range(5000)]
        listed = subprocess.run(
            [sys.executable, "-m", "cortex", "jobs", *where],
            cwd=home, env=environment(home), capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert re.search(r"double\s+done\s.*calls 5,000 of 5,000", listed.stdout), listed.stdout


def test_a_running_job_in_status_is_cancelled(home: Path) -> None:
    import cortex

    config(home, "forget", "[0, 0, 1, 1]")
    with cortex.LocalCluster(nodes=1, slots=2) as cluster:
        where = ("--server", cluster.address, "--home", str(cluster.folder / "server"))
        process = subprocess.Popen(
            [sys.executable, "-m", "cortex", "compute", "c.yaml", "-q", *where],
            cwd=home, env=environment(home), stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 30
            said = ""
            while not re.search(r"forget\s+computing\s.*calls 2 of 4 · 2 running", said):
                assert time.monotonic() < deadline, said
                said = subprocess.run(
                    [sys.executable, "-m", "cortex", "status", *where],
                    cwd=home, env=environment(home), capture_output=True, text=True, check=True,
                ).stdout  # fmt: skip
            job = re.search(r"j[0-9a-f]{12}", said)
            assert job
            subprocess.run(
                [sys.executable, "-m", "cortex", "cancel", job[0], *where],
                cwd=home, env=environment(home), capture_output=True, check=True,
            )  # fmt: skip
            assert process.wait(30) == 130
        finally:
            process.kill()
            process.wait()


def test_what_travels_to_a_cluster(home: Path) -> None:
    import cortex

    (home / "lib").mkdir()
    (home / "lib" / "listed.py").write_text("def shout(text):\n    return text.upper()\n")
    (home / "words.txt").write_text("a word")
    (home / "functions.py").write_text(
        "import os\nimport cortex\nimport listed\nfrom beside import twice\n"
        "def look(x):\n"
        "    with open(cortex.file('words')) as file:\n"
        "        return [twice(x), listed.shout(file.read()), os.environ['LEVEL']]\n"
    )
    config(
        home, "look", "[1]", "files: {words: words.txt}", "modules: [lib/listed.py]", "env: {LEVEL: high}"
    )  # fmt: skip
    with cortex.LocalCluster(nodes=1) as cluster:
        where = ("--server", cluster.address, "--home", str(cluster.folder / "server"))
        assert results(compute(home, *where)) == [[2, "A WORD", "high"]]
    assert results(compute(home)) == [[2, "A WORD", "high"]]


def test_calls_wait_for_a_node_and_say_so(home: Path) -> None:
    import cortex

    config(home, "one", "[1, 2]")
    with cortex.LocalCluster(nodes=1) as cluster:
        cluster.nodes["node1"].kill()
        cluster.nodes["node1"].wait()
        where = ("--server", cluster.address, "--home", str(cluster.folder / "server"))
        process = subprocess.Popen(
            [sys.executable, "-m", "cortex", "compute", "c.yaml", *where],
            cwd=home, env=environment(home) | {"JPY_PARENT_PID": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        read_until(process, "0 of 2 · waiting for a node")
        cluster.start_node("node1")
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert lines_of(out) == [{"call": 0, "result": 1}, {"call": 1, "result": 2}]


@pytest.mark.parametrize("mode", ["ordered", "stream", "collect"])
def test_a_node_that_is_killed_costs_no_result_and_doubles_none(home: Path, mode: str) -> None:
    import cortex

    config(home, "nap", "{range: 300}", f"response_mode: {mode}", "output: r.jsonl")
    with cortex.LocalCluster(nodes=2) as cluster:
        where = ("--server", cluster.address, "--home", str(cluster.folder / "server"))
        process = subprocess.Popen(
            [sys.executable, "-m", "cortex", "compute", "c.yaml", *where],
            cwd=home, env=environment(home) | {"JPY_PARENT_PID": "1"}, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        said = read_until(process, r"\n[1-9][0-9]+ of 300")
        cluster.nodes["node1"].kill()
        _, rest = process.communicate(timeout=90)
        assert process.returncode == 0, said + rest
        lines = lines_of((home / "r.jsonl").read_text())
        assert sorted(each["call"] for each in lines) == list(range(300))
        assert all(each["call"] == each["result"] for each in lines)
        assert mode == "stream" or lines == [{"call": n, "result": n} for n in range(300)]
