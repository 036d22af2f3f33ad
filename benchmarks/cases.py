"""What is compared: each case makes its input, says who runs on it, and checks what they wrote."""

from __future__ import annotations

import compileall
import csv
import json
import math
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.csv as pacsv

from benchmarks import calls as call_contests
from benchmarks import locality
from benchmarks.contest import REPOSITORY, Contender, Row, cortex, hold, peer
from benchmarks.inputs import Inputs, warm
from benchmarks.scheduler_scale import in_short, missed
from benchmarks.segments import Shape
from benchmarks.segments import contest as segment_contest
from datasets.distinct import weighted_sum

Scale = Literal["tiny", "small", "full"]
JOBS = REPOSITORY / "benchmarks" / "jobs"
MIB = 1 << 20
_TEXT_CHARS = 500


@dataclass(frozen=True)
class Setting:
    scale: Scale
    inputs: Inputs
    scratch: Path
    rounds: int
    slots: int
    hard_cap: bool
    """False where the machine allows no control group: memory is then only watched."""
    say: Callable[[str], None]
    peers_python: str = sys.executable
    """That has Dask, Ray and joblib, if any has."""

    def pick(self, tiny: Any, small: Any, full: Any) -> Any:
        return {"tiny": tiny, "small": small, "full": full}[self.scale]

    def hold(self, contest: str, contenders: list[Contender], **options: Any) -> list[Row]:
        options.setdefault("rounds", self.rounds)
        options.setdefault("judge", self.scale == "full")
        return hold(contest, contenders, self.scratch, slots=self.slots, say=self.say, **options)


def mapreduce(setting: Setting, job: str, path: Path, memory: str = "") -> Callable[[Path], list[str]]:
    def command(out: Path) -> list[str]:
        capped = ["--memory", memory] if memory else []
        arguments = ["--input", path, "--output", out, "--slots", setting.slots, "--quiet", *capped]
        return cortex("mapreduce", JOBS / job, *arguments)

    return command


def result_files(out: Path) -> list[Path]:
    """The CSV files of a result: a folder of cortex, or a peer's single file."""
    return sorted(out.glob("part-*")) if out.is_dir() else [out]


def result_rows(out: Path) -> Iterator[dict[str, str]]:
    for path in result_files(out):
        with open(path, newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)


# --- checks ---------------------------------------------------------------------------------------


def check_stations(answer: dict[str, Any], exact: bool) -> Callable[[Path], str]:
    """`exact`: means to the last bit. Peers add floats in an order of their own."""

    def check(out: Path) -> str:
        expected, seen = answer["stations"], 0
        for row in result_rows(out):
            want = expected[row["station"]]
            mean = want["sum"] / want["count"]
            same = (
                float(row["mean"]) == mean if exact else math.isclose(float(row["mean"]), mean, rel_tol=1e-9)
            )
            found = (int(row["readings"]), float(row["coldest"]), float(row["hottest"]))
            if not same or found != (want["count"], want["min"], want["max"]):
                return f"{row} is not {want}"
            seen += 1
        return "" if seen == len(expected) else f"{seen} of {len(expected)} stations"

    return check


def check_words(answer: dict[str, Any]) -> Callable[[Path], str]:
    def check(out: Path) -> str:
        words = distinct = 0
        expected = dict(answer["counts"])
        for path in result_files(out):
            with open(path, newline="", encoding="utf-8") as file:
                rows = csv.reader(file)
                next(rows)
                for word, count in rows:
                    distinct += 1
                    words += int(count)
                    if word in expected and expected.pop(word) != int(count):
                        return f"{word}: {count} is not {answer['counts'][word]}"
        if (words, distinct) != (answer["words"], answer["distinct"]) or any(expected.values()):
            return f"{words} words, {distinct} distinct; not {answer['words']}, {answer['distinct']}"
        return ""

    return check


def check_sums(answer: dict[str, Any], key: str, total: str) -> Callable[[Path], str]:
    """Every group's sum, by the weighted sum that the data set knows."""

    def check(out: Path) -> str:
        groups = weighted = 0
        for path in result_files(out):
            with pacsv.open_csv(path) as batches:
                for batch in batches:
                    keys = batch.column(key).to_numpy()
                    sums = batch.column(total).to_numpy(zero_copy_only=False).astype(np.int64)
                    groups += len(keys)
                    weighted = (weighted + weighted_sum(keys, sums)) % 2**64
        if (groups, weighted) != (answer["groups"], answer["weighted"]):
            return f"{groups} groups (weighted {weighted}), not {answer['groups']} ({answer['weighted']})"
        return ""

    return check


def check_hotkey(answer: dict[str, Any], text_chars: int) -> Callable[[Path], str]:
    wanted = {
        key: f"{want['count']} {want['sum']} {want['count'] * text_chars}"
        for key, want in answer["keys"].items()
    }

    def check(out: Path) -> str:
        rows = [(row["key"], row["value"]) for row in result_rows(out)]
        return "" if len(rows) == len(wanted) and dict(rows) == wanted else f"{len(rows)} groups: {rows[:9]}"

    return check


def check_copy(path: Path) -> Callable[[Path], str]:
    """The parts, one after the other and without their headers, are `path` byte for byte."""

    def check(out: Path) -> str:
        with open(path, "rb") as wanted:
            header = wanted.readline()
            for part in result_files(out):
                with open(part, "rb") as found:
                    if found.readline() != header:
                        return f"{part.name} has no header"
                    while block := found.read(1 << 20):
                        if wanted.read(len(block)) != block:
                            return f"{part.name} differs before byte {found.tell()}"
            return "" if wanted.read(1) == b"" else "rows are missing at the end"

    return check


# --- cases ----------------------------------------------------------------------------------------


def csv_stations(setting: Setting) -> list[Row]:
    """CSV min, mean, max and count by 413 keys: aim 1.15 of the bare loop, 1.5 of Polars."""
    path, answer = setting.inputs.get("stations", setting.pick(200_000, 10_000_000, 100_000_000))
    warm(path)
    sql = (
        "SELECT station, min(temp) AS coldest, avg(temp) AS mean, max(temp) AS hottest, count(*) AS readings "
        "FROM read_csv({input}, columns={'station': 'VARCHAR', 'temp': 'DOUBLE'}, header=true) GROUP BY 1"
    )
    threads = setting.slots
    about = check_stations(answer, False)
    contenders = [
        Contender("cortex", mapreduce(setting, "stations.yaml", path), check_stations(answer, True)),
        Contender(
            "bare pyarrow loop",
            lambda out: peer("stations_pyarrow", path, out, threads),
            about,
            ratio_max=1.15,
        ),
        Contender("Polars streaming", lambda out: peer("stations_polars", path, out), about),
        Contender(
            "DuckDB", lambda out: peer("duckdb_sql", sql, path, out, threads, "", setting.scratch), about
        ),
    ]
    return setting.hold("csv_stations", contenders)


def wordcount(setting: Setting) -> list[Row]:
    """One Python call a line, folded by sum: aim, no slower than the pool with a generator mapper."""
    rows, octaves = setting.pick((5_000, 12), (2_000_000, 20), (24_000_000, 24))
    path, answer = setting.inputs.get("text", rows, octaves=octaves)
    warm(path)
    check = check_words(answer)
    contenders = [Contender("cortex", mapreduce(setting, "wordcount.py:WordCount", path), check)]
    for form in ("generator", "inline"):
        contenders.append(
            Contender(
                f"pool, {form}",
                lambda out, form=form: peer("wordcount_pool", path, out, setting.slots, form),  # type: ignore[misc]
                check,
                ratio_max=1.0 if form == "generator" else None,
            )
        )
    return setting.hold("wordcount", contenders)


def lineitem(setting: Setting) -> list[Row]:
    """Group by a quarter as many keys as rows (7.5 M at full scale) under 1 GB: aim 1.5 of DuckDB."""
    rows = []
    for shuffled in (False, True):
        path, answer = setting.inputs.get(
            "lineitem", setting.pick(20_000, 3_000_000, 30_000_000), shuffled=shuffled
        )
        warm(path)
        sums = "sum(l_quantity) AS quantity, count(*) AS lines"
        sql = f"SELECT l_orderkey, {sums} FROM read_csv({{input}}) GROUP BY 1"
        check = check_sums(answer, "l_orderkey", "quantity")
        spill = setting.scratch
        contenders = [
            Contender("cortex", mapreduce(setting, "lineitem.yaml", path, "900MB"), check),
            Contender(
                "DuckDB",
                lambda out: peer("duckdb_sql", sql, path, out, setting.slots, "700MB", spill),  # noqa: B023
                check,
                ratio_max=1.5,
            ),
            Contender("Polars streaming", lambda out: peer("lineitem_polars", path, out), check),  # noqa: B023
        ]
        name = "lineitem shuffled" if shuffled else "lineitem clustered"
        cap = 1024 * MIB if setting.hard_cap else None
        rows += setting.hold(name, contenders, cap_bytes=cap)
    return rows


def startup(setting: Setting) -> list[Row]:
    """From nothing: ``--version`` under 0.15 s, a job over 1 MB under 1.2 s."""
    path, answer = setting.inputs.get("stations", 60_000)
    rounds = max(5, setting.rounds)
    # As installed: pip compiles a package; a checkout under PYTHONDONTWRITEBYTECODE never is, and each
    # of three processes would compile its modules again.
    compileall.compile_dir(REPOSITORY / "cortex", quiet=1)
    interpreter = Contender("python alone", lambda out: [sys.executable, "-c", "pass"])
    version = Contender("cortex", lambda out: cortex("--version"), seconds_max=0.15)
    rows = setting.hold("startup --version", [version, interpreter], rounds=rounds, judge=True)
    check = check_stations(answer, True)
    job = Contender("cortex", mapreduce(setting, "stations.yaml", path), check, seconds_max=1.2)
    imports = Contender("python, import pyarrow", lambda out: [sys.executable, "-c", "import pyarrow.csv"])
    return rows + setting.hold("startup 1 MB job", [job, imports], rounds=rounds, judge=True)


def memory(setting: Setting) -> list[Row]:
    """Under `--memory` and a hard cap a quarter above it: nothing killed, the tree below the memory.

    At full scale every input has 10 GB.
    """
    megabytes = setting.pick(384, 384, 512)
    cap = megabytes * MIB * 5 // 4 if setting.hard_cap else None
    get, pick, rows = setting.inputs.get, setting.pick, []

    def held(name: str, job: str, path: Path, check: Callable[[Path], str]) -> None:
        contender = Contender("cortex", mapreduce(setting, job, path, f"{megabytes}MB"), check)
        for row in setting.hold(name, [contender], rounds=1, cap_bytes=cap, watch_memory=True):
            if not row.problem and row.peak_tree_bytes > megabytes * MIB:
                row.problem = f"peak {row.peak_tree_bytes / MIB:.0f} MB is above --memory {megabytes}MB"
                setting.say(row.line())
            rows.append(row)

    path, answer = get("stations", pick(200_000, 60_000_000, 600_000_000))
    held("memory aggregation", "stations.yaml", path, check_stations(answer, True))
    # Half of it is one group's: 5 GB at full scale.
    path, answer = get("hotkey", pick(20_000, 2_000_000, 20_000_000), hot_percent=50, text_chars=_TEXT_CHARS)
    held("memory one group", "hotkey.py:HotKey", path, check_hotkey(answer, _TEXT_CHARS))
    held("memory in batches", "hotkey_batches.py:HotKeyBatches", path, check_hotkey(answer, _TEXT_CHARS))
    held("memory map only", "copy.yaml", path, check_copy(path))
    keys = pick(20_000, 10_000_000, 100_000_000)
    path, answer = get("distinct", 8 * keys, keys=keys)
    held("memory distinct keys", "distinct.yaml", path, check_sums(answer, "key", "total"))
    lines, octaves = pick((5_000, 12), (21_500_000, 22), (215_000_000, 24))
    path, answer = get("text", lines, octaves=octaves)
    held("memory word count", "wordcount.py:WordCount", path, check_words(answer))
    return rows


def scheduler(setting: Setting) -> list[Row]:
    """The scheduler under 1,000 simulated nodes: decisions under 10 ms at p99, heartbeats 5 % of a core."""
    pick = setting.pick
    clusters: dict[str, tuple[tuple[int, int], list[str]]] = {  # maps, partitions
        "text": (pick((500, 20), (100_000, 200), (1_000_000, 1000)), []),
        "CSV": (pick((500, 4), (50_000, 20), (1_000_000, 20)), ["--scanned"]),
        "wide": (pick((200, 200), (20_000, 4096), (200_000, 4096)), []),
    }
    rows = []
    for name, ((maps, partitions), options) in clusters.items():
        command = [sys.executable, "-m", "benchmarks.scheduler_scale", f"--nodes={pick(20, 1000, 1000)}"]
        command += [
            f"--maps={maps}",
            f"--partitions={partitions}",
            f"--files={max(5, maps // 1000)}",
            *options,
        ]
        figures: dict[str, Any] = {}

        def check(out: Path, figures: dict[str, Any] = figures) -> str:
            figures.update(json.loads(out.read_text()))
            return ""  # the simulation checks itself, and fails

        def run(out: Path, command: list[str] = command) -> list[str]:
            return [*command, f"--json={out}"]

        for row in setting.hold(f"scheduler, {name}", [Contender("cortex", run, check)], rounds=1):
            row.figures = figures
            row.missed = missed(figures) if figures and setting.scale == "full" else ""
            if figures:
                setting.say(in_short(figures))
            rows.append(row)
    return rows


def near_data(setting: Setting) -> list[Row]:
    """Four nodes with data of their own: 95 % of the maps node-local, and a slow holder does not hold the
    job."""
    files, rows = setting.pick((3, 50_000), (10, 500_000), (25, 4_000_000))
    command = [sys.executable, "-m", "benchmarks.locality", f"--files-per-node={files}", f"--rows={rows}"]
    figures: dict[str, Any] = {}

    def check(out: Path) -> str:
        figures.update(json.loads(out.read_text()))
        return ""  # the program checks the sums itself, and fails

    found = setting.hold(
        "near the data", [Contender("cortex", lambda out: [*command, f"--json={out}"], check)], rounds=1
    )
    for row in found:
        row.figures = figures
        row.missed = locality.missed(figures) if figures and setting.scale != "tiny" else ""
        if figures:
            setting.say(locality.in_short(figures))
    return found


def server(setting: Setting) -> list[Row]:
    """A server's memory over 50,000 jobs, and how long it takes to replay a journal of a million maps."""
    pick = setting.pick
    measured = {
        "life": ["benchmarks.server_life", f"--jobs={pick(200, 10_000, 50_000)}"],
        "replay": [
            "benchmarks.journal_replay",
            f"--maps={pick(200, 100_000, 1_000_000)}",
            "--partitions=100",
        ],
        "replay, wide": [
            "benchmarks.journal_replay",
            f"--maps={pick(200, 20_000, 200_000)}",
            "--partitions=1000",
        ],
    }
    rows = []
    for name, module in measured.items():
        figures: dict[str, Any] = {}

        def check(out: Path, figures: dict[str, Any] = figures) -> str:
            figures.update(json.loads(out.read_text()))
            return ""  # both look at what they did, and fail

        def run(out: Path, module: list[str] = module) -> list[str]:
            return [sys.executable, "-m", *module, f"--json={out}"]

        for row in setting.hold(f"server, {name}", [Contender("cortex", run, check)], rounds=1):
            row.figures = figures
            if figures:
                setting.say(f"    {json.dumps(figures.get('held', [figures])[-1])}")
            rows.append(row)
    return rows


def segments(setting: Setting) -> list[Row]:
    """Map outputs between two processes: 0.9 of a bare Twisted pair, over plain TCP and over TLS 1.3."""
    rows = []
    ways = [(f"{wire} to {sink}", wire, sink) for wire in ("tls", "plain") for sink in ("file", "discard")]
    for name, wire, sink in [*ways, ("in place", "", "")]:
        rows += segment_contest(
            f"segments {name}",
            wire,
            sink,
            Shape(setting.pick(1, 4, 16), setting.pick(1 * MIB, 8 * MIB, 8 * MIB)),
            setting.scratch,
            rounds=setting.rounds,
            judge=setting.scale == "full" and sink == "file",
            say=setting.say,
        )
    return rows


def calls(setting: Setting) -> list[Row]:
    """Functions over arguments: 10 times a pool one by one, half of it in its best chunks, 50 times Dask and
    Ray.

    One call at a time takes less than 1 ms (2 through a server and a node); calls of 10 µs to 10 s keep
    every slot busy within 2 %; a slow one does not hold the others.
    """
    pick = setting.pick
    terms = call_contests.Terms(
        setting.slots,
        setting.rounds,
        setting.scratch,
        setting.scale == "full",
        setting.say,
        setting.peers_python,
    )
    rows = call_contests.hold(
        call_contests.noop(*pick((4000, 400, 40), (500_000, 50_000, 3000), (4_000_000, 200_000, 10_000))),
        terms,
    )
    call_contests.keep_best_chunks(rows)
    contests = [call_contests.single(*pick((50, 10), (2000, 200), (10_000, 1000)))]
    # about ten seconds of each at full scale, but for the longest
    for seconds, calls_of_it in pick(
        ((1e-5, 2000), (0.02, 10)),
        ((1e-5, 400_000), (0.001, 4000), (0.1, 40), (1.0, 4)),
        ((1e-5, 2_000_000), (0.001, 20_000), (0.1, 200), (10.0, 6)),
    ):
        contests.append(call_contests.busy(seconds, calls_of_it))
    contests.append(call_contests.one_slow(*pick((200, 0.1), (4000, 2.0), (10_000, 5.0))))
    contests.append(call_contests.arrays(*pick((3, 2 * 10**6), (4, 10**8), (4, 10**9))))
    for contest in contests:
        rows += call_contests.hold(contest, terms)
    return rows


CASES: dict[str, Callable[[Setting], list[Row]]] = {
    "csv_stations": csv_stations,
    "wordcount": wordcount,
    "lineitem": lineitem,
    "startup": startup,
    "memory": memory,
    "scheduler": scheduler,
    "locality": near_data,
    "server": server,
    "segments": segments,
    "calls": calls,
}


def scratch_name() -> str:
    return f"scratch-{os.getpid()}-{random.randrange(1 << 30):x}"
