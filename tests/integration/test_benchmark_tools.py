"""The benchmarks' own tools: the hard cap kills, memory is counted, wrong answers are noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import calls
from benchmarks.__main__ import main
from benchmarks.cases import check_stations, check_sums, check_words
from benchmarks.cgroup import MemoryCgroup, unavailable
from benchmarks.combining import main as combining_main
from benchmarks.contest import Contender, Row, environment, hold, peer
from benchmarks.locality import missed as locality_missed
from benchmarks.measure import Measured, run
from benchmarks.scheduler_scale import missed
from benchmarks.tree_memory import TreeMemory, descendants
from datasets import Distinct, Stations, Text

MIB = 1 << 20
HOLD = "import sys; data = b'x' * (int(sys.argv[1]) << 20); print(len(data), flush=True); sys.stdin.read()"
TAKE = "import sys; data = b'x' * (int(sys.argv[1]) << 20)"

linux_only = pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="needs Linux's /proc")
needs_cgroup = pytest.mark.skipif(bool(unavailable()), reason=f"no hard memory cap here: {unavailable()}")


@needs_cgroup
def test_a_process_above_the_hard_cap_is_killed_and_counted() -> None:
    fine = run([sys.executable, "-c", TAKE, "40"], cap_bytes=100 * MIB)
    assert (fine.exit_code, fine.oom_kills) == (0, 0)
    assert 40 * MIB < fine.group_peak_bytes <= 100 * MIB
    killed = run([sys.executable, "-c", TAKE, "200"], cap_bytes=100 * MIB)
    assert killed.exit_code == -9
    assert killed.oom_kills == 1


@needs_cgroup
def test_a_group_counts_its_processes_and_leaves_nothing() -> None:
    with MemoryCgroup(200 * MIB) as group:
        child = group.start([sys.executable, "-c", "import subprocess, sys; subprocess.run(['sleep', '60'])"])
        assert child.pid in group.pids()
        assert group.usage_bytes() > 0
        folder = group.folder
    assert child.wait(10) == -9
    assert not folder.exists()


@linux_only
def test_memory_of_a_tree_is_counted_with_its_children() -> None:
    starter = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}, '60'])"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", starter], **pipes) as process:  # type: ignore[call-overload]
        assert process.stdout.readline()  # the grandchild holds its memory
        memory = TreeMemory(lambda: descendants(process.pid))
        assert 60 * MIB < memory.sample() < 100 * MIB
        assert len(memory.peak_processes) == 2
        process.stdin.close()
    assert memory.sample() == 0
    assert memory.peak_bytes > 60 * MIB


def test_the_hand_written_peers_are_right(tmp_path: Path) -> None:
    stations, text = Stations(30_000), Text(3000, octaves=10)
    stations.write(os.fspath(tmp_path / "stations.csv"))
    text.write(os.fspath(tmp_path / "text.txt"))
    contenders = [
        Contender(
            "loop",
            lambda out: peer("stations_pyarrow", tmp_path / "stations.csv", out, 3),
            check_stations(stations.answer(), False),
        ),
        *(
            Contender(
                form,
                lambda out, form=form: peer("wordcount_pool", tmp_path / "text.txt", out, 3, form),
                check_words(text.answer()),
            )
            for form in ("generator", "inline")
        ),
        Contender("broken", lambda out: [sys.executable, "-c", "raise SystemExit('no')"]),
        Contender("idle", lambda out: [sys.executable, "-c", "pass"], lambda out: "no result"),
    ]
    rows = {row.name: row for row in hold("c", contenders, tmp_path, rounds=1, say=lambda line: None)}
    assert [rows[name].problem for name in ("loop", "generator", "inline")] == ["", "", ""]
    assert rows["broken"].problem.startswith("failed (1): no")
    assert rows["idle"].problem == "WRONG ANSWER: no result"
    assert rows["broken"].median_s is None


def test_a_wrong_answer_is_noticed(tmp_path: Path) -> None:
    made = Distinct(100, keys=20)
    sums: dict[int, int] = {}
    for line in b"".join(made.blocks()).decode().splitlines()[1:]:
        key, value = map(int, line.split(","))
        sums[key] = sums.get(key, 0) + value
    out = tmp_path / "out.csv"
    check = check_sums(made.answer(), "key", "total")

    def result(rows: dict[int, int]) -> str:
        out.write_text("key,total\n" + "".join(f"{k},{v}\n" for k, v in rows.items()))
        return check(out)

    assert result(sums) == ""
    assert "20 groups" in result({**sums, 7: sums[7] + 1})
    assert "19 groups" in result({k: v for k, v in sums.items() if k})


def test_everyone_gets_the_same_number_of_threads() -> None:
    assert environment(3)["POLARS_MAX_THREADS"] == "3"


def test_the_scheduler_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    assert main(["scheduler", "--scale", "tiny", "--data", str(tmp_path / "data"), "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [row["contest"] for row in rows] == ["scheduler, text", "scheduler, CSV", "scheduler, wide"]
    assert [row["figures"]["cluster"]["maps"] for row in rows] == [500, 500, 200]
    assert "heartbeats/s" in capsys.readouterr().err


def test_locality_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    assert main(["locality", "--scale", "tiny", "--data", str(tmp_path / "data"), "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    figures = row["figures"]
    assert (figures["files"], figures["spread"]["maps"], figures["straggler"]["maps"]) == (12, 12, 12)
    assert "node-local" in capsys.readouterr().err
    assert "95%" in locality_missed({**figures, "spread": {"local": 0.9}})
    slow = {"spread": {"local": 1.0}, "twice": {"seconds": 1.0}, "straggler": {"seconds": 17.0}}
    assert "slow holder" in locality_missed(slow)


def test_calls_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    options = ["--scale", "tiny", "--rounds", "1", "--data", str(tmp_path / "data"), "--json", str(path)]
    assert main(["calls", *options, "--peers-python", sys.executable]) == 0, capsys.readouterr().err
    rows = json.loads(path.read_text())["rows"]
    contests = {row["contest"] for row in rows}
    assert contests == {
        "calls, no-op", "calls, one by one", "calls of 1e-05 s", "calls of 0.02 s", "calls, one is slow",
        "calls, 2 MB",
    }  # fmt: skip
    for contest in contests:
        names = [row["name"] for row in rows if row["contest"] == contest]
        assert names[0] == "cortex"
        assert "cortex, cluster" in names
    for row in rows:
        assert row["missing"] or row["figures"]["calls"] > 0, row
        assert not row["missing"] or "pip install" in row["missing"]


def test_calls_that_break_a_promise_are_noticed() -> None:
    slow = calls.single(10, 10).sides[0]
    assert slow.judge({"median_s": 0.0009}) == ""
    assert "1 ms" in slow.judge({"median_s": 0.0011})
    idle = calls.busy(0.001, 10).sides[0]
    assert idle.judge({"busy": 0.981}) == ""
    assert "98 %" in idle.judge({"busy": 0.979})
    held = calls.one_slow(10, 1.0).sides[0]
    assert held.judge({"others_s": 1.04, "ideal_s": 1.0}) == ""
    assert "x1.05" in held.judge({"others_s": 1.06, "ideal_s": 1.0})
    rows = [Row("c", f"pool, chunks of {size}", [Measured(size / 10, 0.0, 0)]) for size in (2, 1, 3)]
    for row in rows:
        row.missed = "promised"
    calls.keep_best_chunks(rows)
    assert [row.missed for row in rows] == ["", "promised", ""]


def test_a_framework_that_gives_wrong_answers_is_noticed(tmp_path: Path) -> None:
    wrong = replace(calls.single(5, 5), right=lambda figures, side: side.name != "pool")
    wrong = replace(
        wrong, sides=[side for side in wrong.sides if side.name in ("pool", "ProcessPoolExecutor")]
    )
    said: list[str] = []
    found = {row.name: row for row in calls.hold(wrong, calls.Terms(1, 2, tmp_path, False, said.append))}
    assert "WRONG ANSWER" in found["pool"].problem
    assert len(found["pool"].runs) == 1
    assert len(found["ProcessPoolExecutor"].runs) == 2
    assert found["ProcessPoolExecutor"].problem == ""


def test_segments_are_measured_against_a_bare_pair(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    assert main(["segments", "--scale", "tiny", "--data", str(tmp_path / "data"), "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [(row["contest"], row["name"]) for row in rows] == [
        (f"segments {way}", who)
        for way in ("tls to file", "tls to discard", "plain to file", "plain to discard", "in place")
        for who in ("cortex", "bare")
    ]
    for row in rows:
        assert len(row["runs"]) == 3
        assert all(run["moved_bytes"] >= 16 * MIB and run["receiver_s"] > 0 for run in row["runs"])


def test_a_scheduler_that_breaks_its_promise_is_noticed() -> None:
    figures: dict[str, Any] = {
        "decisions": {"all": {"p99_ms": 9.0}},
        "heartbeats": {"with_decoding_core": 0.04},
    }
    assert missed(figures) == ""
    figures["heartbeats"]["with_decoding_core"] = 0.06
    assert "heartbeats" in missed(figures)
    figures["decisions"]["all"]["p99_ms"] = 11.0
    assert "10 ms at p99" in missed(figures)


def test_an_unknown_case_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["nosuch"])
    assert caught.value.code == 2
    assert "csv_stations" in capsys.readouterr().err


def test_combining_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--lines", "9000", "--words", "500", "--rounds", "1", "--split-bytes", "10000"]
    assert combining_main(arguments) == 0
    figures = json.loads(capsys.readouterr().out)
    # which of them is less is another test's: a job as small as this one may end before anything is combined
    assert figures["combined"]["fetched_bytes"] > 0
    assert figures["plain"]["fetched_bytes"] > 0
