"""Progress while a job runs, and its summary afterwards; all of it on standard error.

A terminal gets a bar for each stage (rich), a pipe or file a line every `LINE_S`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, TextIO, cast

from cortex.cli.locality import shares
from cortex.cli.terminal import ForShow, say
from cortex.units import counted, format_bytes, format_count, format_seconds
from cortex.wire.messages import JobProgress, JobReport, StageProgress

if TYPE_CHECKING:
    from cortex.result import Result

LINE_S: Final = 10.0  # a log of an hour's job stays readable
_NOBODY: Final = "the cluster has no node just now: waiting for one (start it with: cortex node)"
_RATE_AFTER_S: Final = 0.5  # before it, rate and time left are noise

OnProgress = Callable[[JobProgress], None]


@contextlib.contextmanager
def progress_display(quiet: bool) -> Iterator[OnProgress | None]:
    """What to call with each JobProgress, for as long as the job runs; None shows nothing."""
    if quiet:
        yield None
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _bars() as show:
            yield show
    else:
        yield _lines(say, time.monotonic)


def _lines(write: Callable[[str], None], clock: Callable[[], float]) -> OnProgress:
    """A line at most every `LINE_S`, the first one that long after the start, or when no node is there."""
    last, alone = clock(), False

    def show(progress: JobProgress) -> None:
        nonlocal last, alone
        alone, was_alone = progress.slots == 0, alone
        if clock() - last >= LINE_S or (alone and not was_alone):
            last = clock()
            write(progress_line(progress))

    return show


def progress_line(progress: JobProgress) -> str:
    """One line: the running stages, then spill and memory."""
    running = [s for s in progress.stages if s.tasks_done < s.tasks_total] or list(progress.stages[-1:])
    parts = [" · ".join([f"{s.stage} {s.tasks_done}/{s.tasks_total}", *_facts(s)]) for s in running]
    return "cortex: " + " | ".join([*parts, _job_facts(progress)])


def _job_facts(progress: JobProgress) -> str:
    if progress.slots == 0:
        return _NOBODY
    memory = f"memory {format_bytes(progress.memory_bytes)} of {format_bytes(progress.memory_cap_bytes)}"
    return f"spilled {format_bytes(progress.spilled_bytes)} · {memory}"


def _facts(stage: StageProgress) -> list[str]:
    """Bytes, rows, rate and time left, as far as they are known."""
    facts = []
    if stage.bytes_total:
        facts.append(f"{format_bytes(stage.bytes_done)} of {format_bytes(stage.bytes_total)}")
    elif stage.bytes_done:
        facts.append(format_bytes(stage.bytes_done))
    if stage.rows_in:
        facts.append(f"{format_count(stage.rows_in)} rows")
    if stage.bytes_done and stage.seconds >= _RATE_AFTER_S:
        facts.append(f"{format_bytes(stage.bytes_done / stage.seconds)}/s")
    left = seconds_left(stage)
    if left is not None:
        facts.append(f"{format_seconds(left)} left")
    return facts


def fraction_done(stage: StageProgress) -> float:
    """From 0 to 1, by bytes where they are known, else by tasks."""
    if stage.tasks_total and stage.tasks_done >= stage.tasks_total:
        return 1.0
    if stage.bytes_total:
        return min(1.0, stage.bytes_done / stage.bytes_total)
    return stage.tasks_done / stage.tasks_total if stage.tasks_total else 0.0


def seconds_left(stage: StageProgress) -> float | None:
    """At the stage's rate so far; None while that says nothing, and when it is done."""
    done = fraction_done(stage)
    if stage.seconds < _RATE_AFTER_S or not 0.02 <= done < 1.0:
        return None
    return stage.seconds * (1.0 - done) / done


@contextlib.contextmanager
def _bars() -> Iterator[OnProgress]:
    """Bars that are redrawn when news come, and removed at the end: the summary says the rest."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    console = Console(file=cast(TextIO, ForShow(sys.stderr)))

    def drawing(progress: JobProgress) -> Group:
        table = Table.grid(padding=(0, 1))
        for stage in progress.stages:
            bar = ProgressBar(total=1.0, completed=fraction_done(stage), width=24)
            tasks = f"{stage.tasks_done}/{stage.tasks_total}"
            table.add_row(
                f"{stage.stage:<6}", bar, Text(tasks), Text(" · ".join(_facts(stage)), overflow="ellipsis")
            )
        return Group(table, Text(_job_facts(progress), style="dim"))

    with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:
        yield lambda progress: live.update(drawing(progress), refresh=True)


# --- after the job ----------------------------------------------------------------------------------


def summary(result: Result) -> list[str]:
    """What the job did, a line each."""
    report = result.report
    lines = [f"{report.name}: done in {format_seconds(report.seconds)}"]
    groups = f" from {format_count(report.groups)} groups" if report.groups else ""
    lines.append(
        f"  rows     {format_count(report.rows_in)} in · {format_count(report.rows_out)} out{groups}"
    )
    sizes = [
        (report.bytes_in, "read"),
        (report.spilled_bytes, "spilled"),
        (report.shuffled_bytes, "shuffled"),
        (report.bytes_out, "written"),
    ]
    lines.append("  bytes    " + " · ".join(f"{format_bytes(count)} {what}" for count, what in sizes))
    if said := shares(report.locality):
        lines.append(f"  input    {said}")
    lines.append(
        f"  memory   peak {format_bytes(report.memory_peak_bytes)} of {format_bytes(report.memory_cap_bytes)}"
        f" for all processes, {counted(report.slots, 'slot')}"
    )
    lines.append("  time     " + " · ".join(f"{s.stage} {format_seconds(s.seconds)}" for s in report.stages))
    lines += _more(report)
    if result.path is not None:
        lines.append(f"  output   {result.path}")
    return lines


def _more(report: JobReport) -> list[str]:
    lines = []
    if report.slowest is not None:
        lines.append(f"  slowest  {format_seconds(report.slowest.seconds)}: {report.slowest.what}")
    if report.failed_attempts:
        lines.append(f"  retries  {counted(report.failed_attempts, 'attempt')} failed and ran again")
    for group, counts in sorted(report.counters.items()):
        counts_text = " · ".join(f"{name} {format_count(n)}" for name, n in sorted(counts.items()))
        lines.append(f"  counter  {group}: {counts_text}")
    return lines + [f"  note     {note}" for note in report.notes]
