"""Metrics as text: Prometheus' own parser reads what was said; and the server's figures without sockets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from benchmarks.server_life import Life
from cortex.errors import ErrorReport, StateFailed, UserCodeError
from cortex.limits import HELLO_S_MAX, JOURNAL_RETRY_S, METRICS_CONNECTIONS_MAX
from cortex.metric_text import Family, Histogram, by_label, counter, gauge, text_of
from cortex.process_metrics import process_families
from cortex.scheduling.tally import Tally
from cortex.server.server_metrics import server_ailing, server_families
from cortex.wire.metrics_port import _Channel

LABELS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.dictionaries(LABELS, st.floats(allow_nan=False) | st.integers(0, 2**63), max_size=5), LABELS)
def test_labels_and_values_come_out_as_they_went_in(values: dict[str, float], about: str) -> None:
    family = by_label("x_bytes", "gauge", about, ["of"], [((name,), value) for name, value in values.items()])
    (read,) = text_string_to_metric_families(text_of([family]))
    assert {sample.labels["of"]: sample.value for sample in read.samples} == {
        name: float(value) for name, value in values.items()
    }
    assert read.type == "gauge"


def test_a_histogram_counts_what_is_at_most_each_bound() -> None:
    histogram = Histogram([0.1, 1.0])
    for value in (0.05, 0.1, 0.5, 3.0):
        histogram.add(value)
    (read,) = text_string_to_metric_families(text_of([histogram.family("x_seconds", "Time.")]))
    assert read.type == "histogram"
    assert [(sample.name, sample.labels.get("le"), sample.value) for sample in read.samples] == [
        ("x_seconds_bucket", "0.1", 2),
        ("x_seconds_bucket", "1", 3),
        ("x_seconds_bucket", "+Inf", 4),
        ("x_seconds_sum", None, 3.65),
        ("x_seconds_count", None, 4),
    ]


def test_names_are_as_prometheus_wants_them(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.round(20)
    families = list(server_families(life.server, life.desk, life.audit, {"node": 4}, {"server": 5.0}))
    read = {each.name: each for each in text_string_to_metric_families(text_of(families))}
    assert len(read) == len(families)
    for family in families:
        assert family.name.startswith(("cortex_", "process_")), family.name
        if family.kind == "counter":
            assert family.name.endswith("_total")
        else:
            assert not family.name.endswith("_total")
        assert family.about.endswith(".")
    jobs = {each.labels["state"]: each.value for each in read["cortex_jobs_ended"].samples}
    assert jobs == {"done": 16, "failed": 2, "cancelled": 2}
    failed = {tuple(each.labels.values()): each.value for each in read["cortex_attempts_failed"].samples}
    assert failed[("map", "user-code")] >= 4
    assert read["cortex_nodes"].samples[0].value == 4
    assert read["cortex_relayed_bytes"].samples[0].value == 12 * len(b"a part")
    assert server_ailing(life.server, life.desk) == []
    life.end()


def test_a_journal_that_lags_or_fails_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life(tmp_path)

    def lag() -> tuple[float, int]:
        families = server_families(life.server, life.desk, life.audit, {}, {})
        found = {family.name: family.samples[0][2] for family in families if family.samples}
        return found["cortex_journal_lag_seconds"], int(found["cortex_journal_failing"])

    def full(changes: object) -> None:
        raise StateFailed("the disk is full")

    def settle() -> None:
        while life._blocked:
            life.turn()

    settle()
    assert lag() == (0, 0)
    life.desk.node_known("n1", "2")  # the journal's thread has not begun
    life.clock.advance(3)
    assert lag() == (3, 0)
    settle()
    assert lag() == (0, 0)
    with monkeypatch.context() as patch:
        patch.setattr(life.journal, "write", full)
        life.desk.node_known("n1", "3")
        settle()
        life.clock.advance(5)
        assert lag()[1] == 1
        assert lag()[0] >= 5
        (line,) = server_ailing(life.server, life.desk)
        assert line.startswith("the journal cannot be written, for ")
    for _ in range(3):  # it is tried again
        life.clock.advance(JOURNAL_RETRY_S)
        settle()
    assert lag() == (0, 0)
    assert server_ailing(life.server, life.desk) == []
    life.end()


def test_connections_that_never_shake_hands_or_are_too_many_are_cut_off() -> None:
    clock = Clock()
    known: list[object] = []
    factory = SimpleNamespace(known=known.append, wrappedFactory=None)
    owner: Any = SimpleNamespace(reactor=clock, open=0)

    def connected() -> tuple[Any, Any]:
        channel, transport = _Channel(owner), StringTransport()
        channel.factory = SimpleNamespace(log=None)  # type: ignore[assignment]
        channel.callLater = clock.callLater  # type: ignore[method-assign]
        transport.factory = factory  # type: ignore[attr-defined]
        channel.makeConnection(transport)
        return channel, transport

    _, silent = connected()
    clock.advance(HELLO_S_MAX + 1)
    assert silent.disconnected
    assert known == []
    channels = [connected() for _ in range(METRICS_CONNECTIONS_MAX + 1)]
    for channel, _ in channels:
        channel.handshakeCompleted()
    assert len(known) == owner.open == METRICS_CONNECTIONS_MAX
    assert [transport.disconnected for _, transport in channels] == [False] * METRICS_CONNECTIONS_MAX + [True]
    for channel, _ in channels:
        channel.connectionLost(Failure(ConnectionDone()))
    assert owner.open == 0


def test_a_cause_that_a_node_made_up_makes_no_label() -> None:
    tally = Tally()
    tally.task_failed("map", ErrorReport("made-up-4711", "x"))
    tally.task_failed("map", ErrorReport(UserCodeError.code, "x"))
    assert tally.failed == {("map", "other"): 1, ("map", "user-code"): 1}


def test_a_process_knows_itself() -> None:
    found = {family.name: family.samples[0][2] for family in process_families()}
    assert found["process_resident_memory_bytes"] > 1_000_000
    assert found["process_cpu_seconds_total"] > 0
    assert 0 < found["process_open_fds"] <= found["process_max_fds"]


def test_figures_without_labels() -> None:
    text = text_of(
        [gauge("x_bytes", "A\nB \\.", 1.5), counter("y_total", "Y.", 2), Family("z", "gauge", "", [])]
    )
    assert text == (
        "# HELP x_bytes A\\nB \\\\.\n# TYPE x_bytes gauge\nx_bytes 1.5\n"
        "# HELP y_total Y.\n# TYPE y_total counter\ny_total 2\n# HELP z \n# TYPE z gauge\n"
    )
