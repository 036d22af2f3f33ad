"""How far the calls of ``cortex compute`` are, while they run and afterwards; all of it on standard error.

A terminal gets a bar (rich), a notebook one line that is written again, a pipe or file a line every `LINE_S`.
`call_display` asks for the figures by itself, from a thread of its own: calls may take long, and say nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TextIO, cast

from cortex.cli.progress import LINE_S
from cortex.cli.terminal import ForShow, say
from cortex.limits import PROGRESS_S
from cortex.units import format_count, format_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cortex.client.call_owners import CallNumbers

_RATE_AFTER_S: Final = 0.5  # before it, rate and time left are noise
_NOTEBOOK: Final = "JPY_PARENT_PID"
"""Jupyter sets it for a kernel and what it starts."""


@dataclass(frozen=True)
class CallsSoFar:
    """`total` is None where nobody knows; `sent` are those that the source has given. `slots` -1: unknown, 0:
    there is no node."""

    done: int
    failed: int
    sent: int
    total: int | None
    slots: int
    seconds: float

    @property
    def ended(self) -> int:
        return self.done + self.failed

    @property
    def running(self) -> int:
        under_way = max(0, self.sent - self.ended)
        return under_way if self.slots < 0 else min(under_way, self.slots)


def slots_of(numbers: CallNumbers | None) -> int:
    """For `CallsSoFar`."""
    if numbers is None or not numbers.slots:
        return -1
    return 0 if numbers.nobody else numbers.slots


def calls_text(total: int | None, done: int, running: int, failed: int, seconds: float) -> str:
    """``120 of 1,000 · 2 running · 1 failed · 55/s · 16 s left``: also of a job in `cortex status`."""
    ended = done + failed
    parts = [format_count(ended) + (f" of {format_count(total)}" if total is not None else "")]
    if running:
        parts.append(f"{format_count(running)} running")
    if failed:
        parts.append(f"{format_count(failed)} failed")
    if ended and seconds >= _RATE_AFTER_S:
        parts.append(rate_text(ended / seconds))
        if total is not None and total > ended:
            parts.append(f"{format_seconds((total - ended) * seconds / ended)} left")
    return " · ".join(parts)


def rate_text(a_second: float) -> str:
    """``1,234/s``; below one a second ``20/min``."""
    if a_second < 1:
        return f"{a_second * 60:.3g}/min"
    return f"{format_count(a_second)}/s" if a_second >= 100 else f"{a_second:.3g}/s"


def progress_text(so_far: CallsSoFar) -> str:
    if so_far.slots == 0:
        waiting = "waiting for a node (start one with: cortex node)"
        return f"{calls_text(so_far.total, so_far.done, 0, so_far.failed, 0.0)} · {waiting}"
    return calls_text(so_far.total, so_far.done, so_far.running, so_far.failed, so_far.seconds)


def call_summary(name: str, so_far: CallsSoFar) -> str:
    failed = f", {format_count(so_far.failed)} failed" if so_far.failed else ""
    calls = f"{format_count(so_far.done)} call{'' if so_far.done == 1 else 's'} done{failed}"
    rate = ""
    if so_far.ended and so_far.seconds >= _RATE_AFTER_S:
        rate = f" ({rate_text(so_far.ended / so_far.seconds)})"
    return f"{name}: {calls} in {format_seconds(so_far.seconds)}{rate}"


@contextlib.contextmanager
def call_display(
    look: Callable[[], CallsSoFar], *, show: bool = True, then: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Show what `look` gives for as long as the calls run. `then` is called every PROGRESS_S all the same."""
    with _shown() if show else contextlib.nullcontext(_nothing) as draw:
        done = threading.Event()

        def tick() -> None:
            while not done.wait(PROGRESS_S):
                then()
                draw(look())

        thread = threading.Thread(target=tick, name="cortex-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


_Draw = Callable[[CallsSoFar], None]


def _nothing(so_far: CallsSoFar) -> None:
    pass


def _shown() -> contextlib.AbstractContextManager[_Draw]:
    if os.environ.get(_NOTEBOOK) or type(sys.stderr).__module__.startswith("ipykernel"):
        return _one_line(ForShow(sys.stderr))
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return _bar()
    return contextlib.nullcontext(log_lines(say, time.monotonic))


def log_lines(write: Callable[[str], None], clock: Callable[[], float]) -> _Draw:
    """A line at most every `LINE_S`, the first one that long after the start."""
    last = clock()

    def draw(so_far: CallsSoFar) -> None:
        nonlocal last
        if clock() - last >= LINE_S:
            last = clock()
            write(f"cortex: {progress_text(so_far)}")

    return draw


@contextlib.contextmanager
def _one_line(stream: ForShow) -> Iterator[_Draw]:
    """Written again over itself: what notebooks show, where a cursor cannot be moved."""
    longest = 0

    def draw(so_far: CallsSoFar) -> None:
        nonlocal longest
        text = progress_text(so_far)
        longest = max(longest, len(text))
        stream.write("\r" + text.ljust(longest))
        stream.flush()

    try:
        yield draw
    finally:
        stream.write("\r" + " " * longest + "\r")
        stream.flush()


@contextlib.contextmanager
def _bar() -> Iterator[_Draw]:
    """Removed at the end: the summary says the rest."""
    from rich.console import Console
    from rich.live import Live

    console = Console(file=cast(TextIO, ForShow(sys.stderr)))
    with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:
        yield lambda so_far: live.update(drawing(so_far), refresh=True)


def drawing(so_far: CallsSoFar) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    row: list[RenderableType] = ["calls"]
    if so_far.total:
        row.append(ProgressBar(total=1.0, completed=min(1.0, so_far.ended / so_far.total), width=24))
    table = Table.grid(padding=(0, 1))
    table.add_row(*row, Text(progress_text(so_far), no_wrap=True, overflow="ellipsis"))
    return table
