"""The figures of a node, as Prometheus reads them."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass

from cortex.metric_text import Family, by_label, counter, gauge
from cortex.process_metrics import process_families
from cortex.version import VERSION


@dataclass(frozen=True, slots=True)
class NodeFigures:
    """A node now; counts are since it began."""

    node: str
    slots: int
    running: int
    queued: int
    jobs: int
    memory_bytes: int
    memory_peak_bytes: int
    memory_limit_bytes: int
    memory_paused: bool
    spill_free_bytes: int
    finished: int
    failed: int
    spilled_bytes: int
    fetched_bytes: int
    fetched_segments: int
    combined_bytes: int
    """Of map outputs that were combined here."""
    combined_into_bytes: int


def node_families(
    figures: NodeFigures, connected: bool, served_bytes: int, serving: int, expires_at: float
) -> Iterator[Family]:
    """`connected` to its server. `serving`: connections of other nodes; `served_bytes`: sent to them."""
    labels = {"version": VERSION, "python": platform.python_version(), "node": figures.node}
    yield Family("cortex_info", "gauge", "What runs here.", [("", labels, 1)])
    yield gauge("cortex_node_connected", "1: the link to the server is open.", connected)
    used = min(figures.running, figures.slots)
    slots = [(("used",), used), (("free",), figures.slots - used)]
    yield by_label("cortex_node_slots", "gauge", "Slots of this node.", ["state"], slots)
    yield gauge("cortex_node_attempts_queued", "Attempts leased and not begun.", figures.queued)
    yield gauge("cortex_node_jobs", "Jobs that it holds something of.", figures.jobs)
    ended = [(("finished",), figures.finished), (("failed",), figures.failed)]
    yield by_label("cortex_node_attempts_total", "counter", "Attempts that ended here.", ["outcome"], ended)
    yield gauge("cortex_node_memory_bytes", "Memory of its whole process tree.", figures.memory_bytes)
    yield gauge("cortex_node_memory_peak_bytes", "The most it was.", figures.memory_peak_bytes)
    yield gauge("cortex_node_memory_limit_bytes", "Its cap.", figures.memory_limit_bytes)
    yield gauge(
        "cortex_node_memory_paused", "1: over its cap, nothing further begins.", figures.memory_paused
    )
    yield gauge("cortex_node_spill_free_bytes", "Free where it spills.", figures.spill_free_bytes)
    yield counter(
        "cortex_node_spilled_bytes_total", "Bytes that attempts have spilled.", figures.spilled_bytes
    )
    yield counter("cortex_node_fetched_bytes_total", "Bytes fetched from other nodes.", figures.fetched_bytes)
    yield counter("cortex_node_fetched_segments_total", "Segments fetched.", figures.fetched_segments)
    combined = [(("before",), figures.combined_bytes), (("after",), figures.combined_into_bytes)]
    about = "Bytes of map outputs that were combined here, before and after."
    yield by_label("cortex_node_combined_bytes_total", "counter", about, ["side"], combined)
    yield counter("cortex_node_sent_bytes_total", "Bytes sent to other nodes.", served_bytes)
    yield gauge("cortex_node_serving_connections", "Connections of other nodes that fetch.", serving)
    about = "When a certificate expires, seconds since 1970."
    name = "cortex_certificate_expiry_timestamp_seconds"
    yield by_label(name, "gauge", about, ["certificate"], [(("node",), expires_at)])
    yield from process_families()
