"""The figures of a cluster's server, as Prometheus reads them, and what is wrong with it.

Asked at each scrape. Sums over jobs and nodes are made then: a few milliseconds for a thousand of each.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator, Mapping

from cortex.metric_text import Family, by_label, counter, gauge
from cortex.process_metrics import process_families
from cortex.scheduling.leases import CONDITIONS
from cortex.scheduling.progress import FIELDS
from cortex.scheduling.scheduler import Scheduler
from cortex.scheduling.tally import Tally
from cortex.server.audit_desk import AuditDesk
from cortex.server.journal_desk import JournalDesk
from cortex.server.server import Server
from cortex.version import VERSION

_SUMS = {
    "rows_in": ("cortex_rows_in_total", "Rows that attempts have read."),
    "bytes_in": ("cortex_read_bytes_total", "Bytes that attempts have read, of inputs and of map outputs."),
    "rows_out": ("cortex_rows_out_total", "Rows that attempts have written."),
    "bytes_out": ("cortex_written_bytes_total", "Bytes that attempts have written."),
    "spilled_bytes": ("cortex_spilled_bytes_total", "Bytes that attempts have spilled to disks."),
    "shuffled_bytes": ("cortex_shuffled_bytes_total", "Bytes that reduces have read of map outputs."),
}


def server_families(
    server: Server,
    journal: JournalDesk,
    audit: AuditDesk,
    connections: Mapping[str, int],
    expiries: Mapping[str, float],
) -> Iterator[Family]:
    """`connections`: by role, "stranger" for those without certificate. `expiries`: of which certificate ->
    when it expires, seconds since 1970."""
    labels = {"version": VERSION, "python": platform.python_version(), "cluster": server.cluster}
    yield Family("cortex_info", "gauge", "What runs here.", [("", labels, 1)])
    yield from _of_jobs(server.scheduler)
    yield from _of_attempts(server.scheduler.tally)
    yield from _of_nodes(server.scheduler)
    yield server.decision_seconds.family("cortex_decision_seconds", "Time of one decision of the scheduler.")
    yield counter(
        "cortex_stale_messages_total",
        "Messages that came too late to count.",
        server.scheduler.stale_messages,
    )
    relayed = [(("result",), server.relayed_result_bytes), (("input",), server.relayed_input_bytes)]
    yield by_label("cortex_relayed_bytes_total", "counter", "Bytes passed on for clients.", ["of"], relayed)
    yield from _of_journal(journal)
    yield counter("cortex_audit_entries_total", "Entries written to the audit log.", audit.written)
    yield counter("cortex_audit_lost_total", "Entries that went to the server's log alone.", audit.lost)
    counted = [((role,), count) for role, count in sorted(connections.items())]
    yield by_label("cortex_connections", "gauge", "Open connections, by role.", ["role"], counted)
    yield expiry_family(expiries)
    yield from process_families()


def expiry_family(expiries: Mapping[str, float]) -> Family:
    values = [((name,), at) for name, at in sorted(expiries.items())]
    about = "When a certificate expires, seconds since 1970."
    return by_label("cortex_certificate_expiry_timestamp_seconds", "gauge", about, ["certificate"], values)


def server_ailing(server: Server, journal: JournalDesk) -> list[str]:
    """What is wrong with the server itself, a line each."""
    if not journal.failing:
        return []
    return [f"the journal cannot be written, for {journal.lag_s():.0f} s: no new job is taken"]


def _of_jobs(scheduler: Scheduler) -> Iterator[Family]:
    tally = scheduler.tally
    states = Counter(run.state.value for run in scheduler.jobs.values())
    values = [
        ((state,), states[state]) for state in ("planning", "mapping", "reducing", "committing", "computing")
    ]
    values.append((("done, not fetched",), len(scheduler.kept)))
    yield by_label("cortex_jobs", "gauge", "Jobs under way.", ["state"], values)
    yield counter(
        "cortex_jobs_submitted_total", "Jobs accepted since the server began.", tally.jobs_submitted
    )
    ended = [((state,), tally.jobs_ended[state]) for state in ("done", "failed", "cancelled")]
    yield by_label("cortex_jobs_ended_total", "counter", "Jobs that have ended.", ["state"], ended)
    tasks: Counter[tuple[str, str]] = Counter()
    for run in scheduler.jobs.values():
        for stage, totals in run.progress.stages.items():
            table = totals.table
            tasks[stage, "done"] += table.done
            tasks[stage, "leased"] += table.leased
            tasks[stage, "waiting"] += table.waiting
    yield by_label(
        "cortex_tasks", "gauge", "Tasks of jobs under way.", ["stage", "state"], sorted(tasks.items())
    )
    calls, failed = scheduler.calls()
    yield counter("cortex_calls_total", "Calls of functions that have ended.", calls)
    yield counter("cortex_calls_failed_total", "Those of them that failed.", failed)


def _of_attempts(tally: Tally) -> Iterator[Family]:
    def stages(values: Mapping[str, float]) -> list[tuple[tuple[str], float]]:
        return [((stage,), value) for stage, value in sorted(values.items())]

    yield by_label(
        "cortex_attempts_finished_total",
        "counter",
        "Attempts that ended well.",
        ["stage"],
        stages(tally.finished),
    )
    failed = sorted(tally.failed.items())
    about = "Attempts that failed, by the code of their error."
    yield by_label("cortex_attempts_failed_total", "counter", about, ["stage", "cause"], failed)
    about = "Attempts lost with their node."
    yield by_label("cortex_attempts_lost_total", "counter", about, ["stage"], stages(tally.abandoned))
    about = "Time that finished attempts have taken."
    yield by_label("cortex_attempt_seconds_total", "counter", about, ["stage"], stages(tally.task_seconds))
    for field, (name, about) in _SUMS.items():
        place = FIELDS.index(field)
        values = {stage: sums[place] for stage, sums in tally.sums.items()}
        yield by_label(name, "counter", about, ["stage"], stages(values))


def _of_nodes(scheduler: Scheduler) -> Iterator[Family]:
    leases, tally = scheduler.leases, scheduler.tally
    states = Counter(n.condition for n in leases.nodes.values())
    values = [((state,), states[state]) for state in CONDITIONS]
    yield by_label("cortex_nodes", "gauge", "Nodes, by their state.", ["state"], values)
    used = sum(min(len(n.held), n.hello.slots) for n in leases.nodes.values() if n.takes_work)
    yield by_label(
        "cortex_slots",
        "gauge",
        "Slots of the nodes that are up.",
        ["state"],
        [(("used",), used), (("free",), leases.slots - used)],
    )
    queued = sum(max(0, len(n.held) - n.hello.slots) for n in leases.nodes.values() if n.is_here)
    yield gauge("cortex_leases_queued", "Attempts leased beyond the slots, waiting at nodes.", queued)
    yield gauge("cortex_nodes_memory_bytes", "Memory that the nodes use together.", leases.memory_bytes)
    yield gauge("cortex_nodes_memory_limit_bytes", "The sum of the nodes' caps.", leases.cap_bytes)
    spills = [n for n in leases.nodes.values() if n.spill_limit_bytes >= 0]
    spilled, limit = sum(n.spill_bytes for n in spills), sum(n.spill_limit_bytes for n in spills)
    yield gauge("cortex_nodes_spill_bytes", "Temporary data on the nodes.", spilled)
    yield gauge("cortex_nodes_spill_limit_bytes", "The sum of what the nodes may spill.", limit)
    yield counter("cortex_heartbeats_total", "Heartbeats taken from nodes.", tally.heartbeats)
    yield counter("cortex_nodes_lost_total", "Times that a node's work was given up.", tally.nodes_lost)


def _of_journal(journal: JournalDesk) -> Iterator[Family]:
    yield gauge(
        "cortex_journal_lag_seconds", "How long the oldest change is not on the disk.", journal.lag_s()
    )
    yield gauge("cortex_journal_waiting", "Changes that wait to be written.", journal.waiting)
    yield gauge("cortex_journal_failing", "1: its disk fails, and no new job is taken.", journal.failing)
    yield counter("cortex_journal_written_total", "Changes that were written.", journal.written)
    yield journal.write_seconds.family("cortex_journal_write_seconds", "Time of one write, commit included.")
