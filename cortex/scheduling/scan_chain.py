"""Quote states along the splits of a file: what to scan next, and which splits are known by now.

The state at a split's start follows from the state at the split before it, so a file is a chain. It
is scanned in chunks of neighbouring splits, several at once: a chunk whose start state is not known
yet is scanned for every possible one (a hypothesis each), and the chain picks the right one when it
gets there. Where the cheap hypothesis could not tell (UNKNOWN), the chunk is scanned again from that
split with the state that is known by then.

A scan task's number is the index of the first split it reads. The last split of a file is not
scanned: nothing depends on its end.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from cortex.errors import InternalError
from cortex.job.plan import CLOSED, IN, OUT, UNKNOWN, InputPlan, Split
from cortex.limits import SCAN_SPLITS_PER_TASK
from cortex.wire.messages import ScanResult, ScanTask

_STATES = frozenset({OUT, IN, CLOSED, UNKNOWN})


class Chain:
    """One file: `offsets[k]` is where its k-th split starts, `states[k]` the state there, if k <= `front`."""

    __slots__ = ("ends", "file", "first", "front", "offsets", "states")

    def __init__(self, file: int, splits: Sequence[Split]) -> None:
        self.file = file
        self.first = splits[0].index
        self.offsets = array("q", (s.offset for s in splits))
        self.states = array("b", [UNKNOWN]) * len(splits)
        self.states[0] = OUT
        self.front = 0
        self.ends: dict[int, tuple[Sequence[int], bool]] = {}
        """Results ahead of the front: split k -> its end states, and whether its start was known."""

    @property
    def last(self) -> int:
        return len(self.offsets) - 1


class Chunk:
    """A scan task: `count` splits from the k-th of a chain. `fresh`: not issued yet."""

    __slots__ = ("chain", "count", "fresh", "k", "start_state")

    def __init__(self, chain: Chain, k: int, count: int) -> None:
        self.chain, self.k, self.count = chain, k, count
        self.fresh = True
        self.start_state = UNKNOWN


class ScanPlan:
    """The chains and chunks of an input plan. Raises InternalError for a plan it cannot follow."""

    def __init__(self, plan: InputPlan) -> None:
        self.chains: dict[int, Chain] = {}
        self.chunks: dict[int, Chunk] = {}
        self.bytes_total = 0
        scanned = {f.index for f in plan.files if f.needs_scan}
        by_file: dict[int, list[Split]] = {}
        for position, split in enumerate(plan.splits):
            if split.index != position:
                raise InternalError(f"split {split.index} stands at place {position} of the plan")
            if split.file in scanned:
                by_file.setdefault(split.file, []).append(split)
        for file, splits in by_file.items():
            if splits[-1].index - splits[0].index != len(splits) - 1:
                raise InternalError(f"the splits of file {file} do not stand together in the plan")
            chain = self.chains[file] = Chain(file, splits)
            self.bytes_total += splits[-1].offset - splits[0].offset
            k, count = 0, 1
            while k < chain.last:
                # The first chunks are small, so that the first maps need not wait for a whole one.
                size = min(count, SCAN_SPLITS_PER_TASK, chain.last - k)
                self.chunks[chain.first + k] = Chunk(chain, k, size)
                k, count = k + size, count * 2

    def is_known(self, split: Split) -> bool:
        """Are both its states known, as far as they matter?"""
        chain = self.chains.get(split.file)
        if chain is None:
            return True
        k = split.index - chain.first
        return chain.front >= min(k + 1, chain.last)

    def is_scanned(self, split: Split) -> bool:
        """Does some chunk cover it?"""
        chain = self.chains.get(split.file)
        return chain is not None and split.index - chain.first < chain.last

    def fill(self, split: Split) -> Split:
        """The split with its states, for a map."""
        chain = self.chains.get(split.file)
        if chain is None:
            return split
        k = split.index - chain.first
        end = chain.states[k + 1] if k < chain.last else split.end_state
        return Split(
            split.index, split.file, split.offset, split.length, split.rows, split.first_unit, split.units,
            chain.states[k], end,
        )  # fmt: skip

    def issue(self, index: int) -> ScanTask:
        """The message of a scan task, with its start state if the chain has got there."""
        chunk = self.chunks[index]
        chain = chunk.chain
        chunk.fresh = False
        chunk.start_state = chain.states[chunk.k]
        boundaries = tuple(chain.offsets[chunk.k : chunk.k + chunk.count + 1])
        return ScanTask(chain.file, boundaries, chunk.start_state)

    def finish(self, index: int, task: ScanTask, result: ScanResult) -> tuple[range, int | None]:
        """Take a result. Gives the splits that are known now, and the scan task to issue (again).

        Raises InternalError when the result does not fit the task, or cannot tell from a known start.
        """
        chunk = self.chunks[index]
        chain = chunk.chain
        ends = result.ends
        count = len(task.boundaries) - 1
        if len(ends) != count or not all(_STATES.issuperset(row) for row in ends):
            raise InternalError(f"the scan of {count} splits from split {index} answered {ends!r:.200}")
        for i, row in enumerate(ends):
            chain.ends[chunk.k + i] = row, task.start_state != UNKNOWN
        return self._advance(chain)

    def _advance(self, chain: Chain) -> tuple[range, int | None]:
        before = chain.front
        again: int | None = None
        while chain.front < chain.last and chain.front in chain.ends:
            row, from_known = chain.ends.pop(chain.front)
            state = row[chain.states[chain.front]]
            if state == UNKNOWN:
                index = chain.first + chain.front
                if from_known:
                    raise InternalError(f"the scan cannot tell the quote state at the end of split {index}")
                again = index
                self._rescan(chain)
                break
            chain.front += 1
            chain.states[chain.front] = state
        if chain.front == before:
            return range(0), again
        end = chain.front + (chain.front == chain.last)  # the last split needs its start only
        return range(chain.first + before, chain.first + end), again

    def _rescan(self, chain: Chain) -> None:
        """Make the rest of the chunk that the front is in a task of its own, from the front on."""
        k = chain.front
        start = k
        while chain.first + start not in self.chunks:
            start -= 1
        chunk = self.chunks[chain.first + start]
        end = chunk.k + chunk.count
        chunk.count = k - chunk.k
        chunk = self.chunks[chain.first + k] = Chunk(chain, k, end - k)
        chunk.fresh = False
        for i in range(k, end):
            chain.ends.pop(i, None)
