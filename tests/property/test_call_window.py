"""Cells, results that come twice, in pieces and in any order, failed calls and lost links: every call's
result is handed out once, and in order where that is asked for."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.client.call_window import Ledger, Order
from cortex.errors import UserCodeError
from cortex.wire.messages import CallFailed, CallForm, Cell, CellDone

F = "0" * 32
REPORT = UserCodeError("no").report()


def result(cell: Cell, start: int, stop: int, failed: set[int]) -> CellDone:
    failures = tuple(CallFailed(call, b"", REPORT) for call in range(start, stop) if call in failed)
    return CellDone("", cell.cell, start, stop, failed=failures)


@settings(max_examples=300, deadline=None)
@given(
    counts=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    ordered=st.booleans(),
    retries=st.integers(0, 2),
    data=st.data(),
)
def test_every_call_is_handed_out_once(counts: list[int], ordered: bool, retries: int, data: Any) -> None:
    ledger: Ledger[str] = Ledger()
    order: Order[tuple[int, bool]] = Order(ordered)
    at_server: list[Cell] = []
    first = 0
    for count in counts:
        cell = Cell(ledger.number(), F, count, CallForm.ONE, b"", first=first)
        ledger.add(cell, "map", retries)
        order.sent(cell.cell, first, count)
        at_server.append(cell)
        first += count
    handed: list[int] = []
    failures: list[int] = []
    old: list[CellDone] = []

    def settle(done: CellDone) -> None:
        settled = ledger.settle(done)
        if settled is None:
            return
        at_server.extend(settled.again)
        failed = {each.call for each in done.failed}
        for start, stop in settled.ranges:
            order.came(settled.fresh.root, start, stop, (0, False))
            base = settled.fresh.cell.first
            failures.extend(base + call for call in range(start, stop) if call in failed)
        while (ready := order.take()) is not None:
            handed.extend(range(ready.unit.first + ready.start, ready.unit.first + ready.stop))

    steps = 0
    while len(ledger):
        steps += 1
        assert steps < 1000
        what = data.draw(st.sampled_from(["result", "piece", "twice", "lost"])) if steps < 60 else "result"
        if what == "lost" or not at_server:
            at_server = ledger.unfinished()
            continue
        if what == "twice":
            if old:
                settle(data.draw(st.sampled_from(old)))
            continue
        cell = at_server.pop(data.draw(st.integers(0, len(at_server) - 1)))
        failed = {call for call in range(cell.start, cell.end) if data.draw(st.booleans())}
        stop = cell.end
        if what == "piece" and cell.end - cell.start > 1:
            stop = data.draw(st.integers(cell.start + 1, cell.end - 1))
            rest = Cell(
                cell.cell, F, cell.count, CallForm.ONE, b"", first=cell.first, start=stop, stop=cell.end
            )
            at_server.append(rest)
        done = result(cell, cell.start, stop, failed)
        old.append(done)
        settle(done)
    assert order.empty
    assert sorted(handed) == list(range(first))
    assert not ordered or handed == list(range(first))
    assert len(failures) == len(set(failures)), "a call fails once, after its last try"
