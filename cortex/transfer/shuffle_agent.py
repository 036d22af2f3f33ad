"""A node's part in the shuffle: it serves its map outputs, and brings a reduce's inputs before it runs.

A reduce takes a slot only when all its segments are here, or reduces that wait would fill the slots that
a lost map needs. What ran on this node is read in place and never passes here. A segment is removed when
the reduce that read it has finished.

Of a job that combines, what a node has combined comes as one segment for several map outputs. It is of use
to a reduce only if that reads all of them as they are in it: else, as when one of them was made again since,
it is dropped, and they are fetched one by one.

While the server is away a segment that cannot be had counts for nothing: its holder may only wait for the
server as well, and serve nobody meanwhile. It is asked for again when the server is back.

All methods and callbacks are on the reactor's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cortex.errors import CortexError, Unreachable
from cortex.ids import JobId
from cortex.transfer.fetch_queue import Wanted
from cortex.transfer.segment_fetcher import SegmentFetcher
from cortex.transfer.segment_server import SegmentServer
from cortex.wire.join import Endpoint, parse_endpoint
from cortex.wire.map_locations import map_outputs, names
from cortex.wire.messages import MapBlock, MapLocations, OutputNode, ReduceResult, Result, RunTask

Key = tuple[str, int]
"""(map attempt, partition)."""


@dataclass(eq=False)
class _Waiting:
    attempt: str
    job: str
    inputs: Sequence[MapBlock]
    missing: set[Key] = field(default_factory=set)


class Addresses:
    """Where nodes serve others, as far as jobs have told. A node that moved is told of again."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}

    def learn(self, nodes: Sequence[OutputNode]) -> list[str]:
        """The later of two addresses of a node is the one it has. Those that were elsewhere before."""
        told = {each.node: each.data_address for each in nodes}
        moved = [node for node, address in told.items() if self._of.get(node, address) != address]
        self._of.update(told)
        return moved

    def of(self, node: str) -> Endpoint:
        """Raises Unreachable for a node that serves nobody, or that was never told of."""
        address = self._of.get(node, "")
        if not address:
            raise Unreachable(f"node {node} has no address where others fetch from it")
        return parse_endpoint(address, f"the address of node {node}")


class ShuffleAgent:
    """`fetcher(landed, failed)` makes the fetcher, which looks for holders in `addresses`. `ready(attempt)`:
    its inputs are all here; `failed(attempt, error)`: one of them cannot be had. One of the two is called,
    in a later turn, for every attempt that `bring` did not answer at once, unless it is forgotten."""

    def __init__(
        self,
        server: SegmentServer,
        fetcher: Callable[[Any, Any], SegmentFetcher],
        addresses: Addresses,
        ready: Callable[[str], None],
        failed: Callable[[str, CortexError], None],
    ) -> None:
        self._server = server
        self._fetcher = fetcher(self._landed, self._lost)
        self._addresses = addresses
        self._ready = ready
        self._failed = failed
        self._waiting: dict[str, _Waiting] = {}
        self._wanting: dict[Key, set[str]] = {}
        """Segments on their way -> the attempts that wait for them."""
        self._here: dict[str, dict[int, set[str]]] = {}
        """Job -> partition -> map attempts whose segments have landed."""
        self._combined: dict[tuple[str, int], dict[str, tuple[str, ...]]] = {}
        """(Job, partition) -> the first map attempt of a combined segment that has landed -> all of them."""
        self._combines: set[str] = set()
        """Jobs whose map outputs may come combined."""
        self.fetched_bytes = 0
        self.fetched_segments = 0
        self._alone = False
        self._held: dict[Key, Wanted] = {}
        """Segments that could not be had while the server was away."""

    def server_gone(self) -> None:
        self._alone = True

    def server_back(self) -> None:
        """What could not be had meanwhile is asked for again, if a reduce still waits for it."""
        self._alone = False
        held, self._held = self._held, {}
        again = [replace(wanted, ahead=False) for key, wanted in held.items() if self._wanting.get(key)]
        for key in held.keys() - {wanted.key for wanted in again}:
            self._wanting.pop(key, None)
        self._fetcher.fetch(again)

    def open_job(
        self, job: str, folder: str, combines: bool = False, asked: Callable[[], None] | None = None
    ) -> None:
        """`combines`: segments of several map outputs may come as one. `asked()` is called once, when another
        node asks for map outputs of this one."""
        self._server.register_job(job, folder, asked)
        if combines:
            self._combines.add(job)
        self._fetcher.open_job(job, folder)
        self._here[job] = {}

    def bring(self, job: str, run: RunTask, own_name: str, nodes: Sequence[OutputNode]) -> bool:
        """Have the inputs of this reduce here, whose task is filled in; `nodes` are those that it numbers,
        of which `own_name` is this one. True when they are here already."""
        task: Any = run.task
        partition: int = task.partition
        self._drop_unfit(job, partition, task.inputs)
        combines = job in self._combines
        here = self._here[job].get(partition, set())
        missing: dict[Key, Wanted] = {}
        for output in map_outputs(task.inputs, JobId(job)):
            holder = nodes[output.node].node
            if holder != own_name and output.attempt not in here:
                missing[output.attempt, partition] = Wanted(
                    job, holder, output.attempt, partition, combines=combines
                )
        if not missing:
            return True
        self.learn(nodes)
        self._waiting[run.attempt] = _Waiting(run.attempt, job, task.inputs, set(missing))
        new = [wanted for key, wanted in missing.items() if combines or key not in self._wanting]
        for key in missing:
            self._wanting.setdefault(key, set()).add(run.attempt)
        self._fetcher.fetch(new)
        return False

    def fetch_ahead(
        self, message: MapLocations, partitions: Sequence[int], own_name: str, nodes: Sequence[OutputNode]
    ) -> None:
        """Begin to fetch the segments of these partitions from the map outputs that a message tells of."""
        self.learn(nodes)
        job, here = message.job, self._here.get(message.job, {})
        wanted = []
        combines = job in self._combines
        for output in map_outputs(message.blocks, JobId(job)):
            holder = nodes[output.node].node
            for partition in partitions if holder != own_name else ():
                key = output.attempt, partition
                if key not in self._wanting and output.attempt not in here.get(partition, ()):
                    self._wanting[key] = set()
                    wanted.append(
                        Wanted(job, holder, output.attempt, partition, combines=combines, ahead=combines)
                    )
        self._fetcher.fetch(wanted)

    def learn(self, nodes: Sequence[OutputNode]) -> None:
        """Where these nodes serve others."""
        for node in self._addresses.learn(nodes):
            self._fetcher.holder_moved(node)

    def used(self, job: str, result: Result) -> None:
        """An attempt has finished: what a reduce has read is needed no more."""
        if isinstance(result, ReduceResult) and job in self._here:
            self._combined.pop((job, result.partition), None)
            for attempt in self._here[job].pop(result.partition, ()):
                self._fetcher.discard(job, attempt, result.partition)

    def forget(self, attempt: str) -> None:
        """The attempt is revoked or over; what is on its way for it still comes."""
        waiting = self._waiting.pop(attempt, None)
        if waiting is not None:
            for key in waiting.missing & self._wanting.keys():
                self._wanting[key].discard(attempt)

    def combining(self, job: str, on: bool) -> None:
        """Whether more map outputs of the job will be combined on this node."""
        self._server.combining(job, on)

    def combined(self, job: str, name: str, members: Sequence[str]) -> None:
        """The file `name` may be given to others in place of the outputs of these map attempts."""
        self._server.combined(job, name, members)

    def close_job(self, job: str, gone: Callable[[], None]) -> None:
        """`gone()` when no thread works in the job's folder any more."""
        self._server.unregister_job(job)
        for attempt in [each.attempt for each in self._waiting.values() if each.job == job]:
            self.forget(attempt)
        prefix = f"{job}-"
        for key in [key for key in self._wanting if key[0].startswith(prefix)]:
            del self._wanting[key]
            self._held.pop(key, None)
        self._here.pop(job, None)
        self._combines.discard(job)
        for place in [place for place in self._combined if place[0] == job]:
            del self._combined[place]
        self._fetcher.cancel(job, gone)

    def stop(self, gone: Callable[[], None]) -> None:
        """Cut every peer off; `gone()` when nothing is read or written any more."""
        self._waiting.clear()
        self._wanting.clear()
        left = 2

        def one_gone() -> None:
            nonlocal left
            left -= 1
            if not left:
                gone()

        self._fetcher.stop(one_gone)
        self._server.stop(one_gone)

    # --- what the fetcher says ---

    def _landed(self, wanted: Wanted, size_bytes: int, _rows: int, others: Sequence[Wanted] = ()) -> None:
        some = (wanted, *others)
        self.fetched_bytes += size_bytes
        self.fetched_segments += 1
        if wanted.job in self._here:
            self._here[wanted.job].setdefault(wanted.partition, set()).update(each.attempt for each in some)
        if others:
            members = tuple(each.attempt for each in some)
            self._combined.setdefault((wanted.job, wanted.partition), {})[wanted.attempt] = members
            if not self._fits_all(some):
                self._drop_combined(wanted.job, wanted.partition, wanted.attempt)
                for each in some:
                    if not self._wanting.get(each.key):
                        self._wanting.pop(each.key, None)
                self._fetcher.fetch(
                    [replace(each, combines=False, ahead=False) for each in some if each.key in self._wanting]
                )
                return
        for each in some:
            for attempt in sorted(self._wanting.pop(each.key, ())):
                waiting = self._waiting[attempt]
                waiting.missing.discard(each.key)
                if not waiting.missing:
                    del self._waiting[attempt]
                    self._ready(attempt)

    def _fits_all(self, some: Sequence[Wanted]) -> bool:
        """Does every reduce that waits for one of these read all of them?"""
        waiting = {attempt for each in some for attempt in self._wanting.get(each.key, ())}
        return all(names(self._waiting[attempt].inputs, each.attempt) for attempt in waiting for each in some)

    def _drop_unfit(self, job: str, partition: int, inputs: Sequence[MapBlock]) -> None:
        """Drop combined segments of which a reduce with these inputs would not read everything."""
        for first, members in list(self._combined.get((job, partition), {}).items()):
            if not all(names(inputs, member) for member in members):
                self._drop_combined(job, partition, first)

    def _drop_combined(self, job: str, partition: int, first: str) -> None:
        members = self._combined[job, partition].pop(first)
        self._here.get(job, {}).get(partition, set()).difference_update(members)
        self._fetcher.discard(job, first, partition)

    def _lost(self, wanted: Wanted, error: CortexError) -> None:
        if self._alone and self._wanting.get(wanted.key):
            self._held[wanted.key] = wanted
            return
        for attempt in sorted(self._wanting.pop(wanted.key, ())):
            self.forget(attempt)
            self._failed(attempt, error)
