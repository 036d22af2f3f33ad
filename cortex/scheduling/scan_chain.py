"""Quote states along the splits of a file: what to scan next, and which splits are known by now.

The state at a split's start follows from the state at the split before it, so a file is a chain. It
is scanned in chunks of neighbouring splits, several at once: a chunk whose start state is not known
yet is scanned for every possible one (a hypothesis each), and the chain picks the right one when it
gets there. Where the cheap hypothesis could not tell (UNKNOWN), the chunk is scanned again from that
split with the state that is known by then.

A scan task's number is the index of the first split it reads. The last split of a file is not
scanned: nothing depends on its end. Chunks are cut when they are next, and forgotten when the chain has
passed them: a million splits need a byte each.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from cortex.errors import InternalError
from cortex.job.plan import CLOSED, IN, OUT, UNKNOWN, InputPlan, Split
from cortex.limits import SCAN_SPLITS_PER_TASK
from cortex.wire.messages import ScanResult, ScanTask

_STATES = frozenset({OUT, IN, CLOSED, UNKNOWN})


def _chunk_sizes(splits: int) -> Iterator[int]:
    """How `splits` are cut: small at first, so that the first maps need not wait for a whole chunk."""
    size = 1
    while splits > 0:
        size = min(size, SCAN_SPLITS_PER_TASK, splits)
        yield size
        splits, size = splits - size, size * 2


def _chunk_count(splits: int) -> int:
    few = min(splits, 4 * SCAN_SPLITS_PER_TASK)  # by then they have their full size
    full, rest = divmod(splits - few, SCAN_SPLITS_PER_TASK)
    return full + sum(1 for _ in _chunk_sizes(few + rest))


class Chain:
    """One file, splits `first` to `first + last`: `states[k]` is that at its k-th split, if k <= `front`."""

    __slots__ = ("ends", "file", "first", "front", "last", "passed", "states")

    def __init__(self, file: int, first: int, last: int) -> None:
        self.file = file
        self.first = first
        self.last = last
        self.states = array("b", [UNKNOWN]) * (last + 1)
        self.states[0] = OUT
        self.front = 0
        self.passed = 0
        """The first chunk that is still known starts here."""
        self.ends: dict[int, tuple[Sequence[int], bool]] = {}
        """Results ahead of the front: split k -> its end states, and whether its start was known."""


class Chunk:
    """A scan task: `count` splits from the k-th of a chain. `fresh`: not issued yet."""

    __slots__ = ("chain", "count", "fresh", "k")

    def __init__(self, chain: Chain, k: int, count: int) -> None:
        self.chain, self.k, self.count = chain, k, count
        self.fresh = True


class ScanPlan:
    """The chains of an input plan and its chunks, by scan task."""

    def __init__(self, plan: InputPlan) -> None:
        self._splits = plan.splits
        self.chains: dict[int, Chain] = {}
        self.chunks: dict[int, Chunk] = {}
        """Those that were cut and that their chain has not passed."""
        self.unscanned: list[range] = []
        """The splits whose states the plan knows."""
        self.last_cut: dict[int, int] = {}
        """File -> the last scan task that was cut of it."""
        self.tasks = 0
        """Scan tasks there are to do, unless one cannot tell."""
        self.bytes_total = 0
        scanned = {f.index for f in plan.files if f.needs_scan}
        first, end = 0, len(plan.splits)
        while first < end and scanned:
            file, after = plan.splits.file_of(first), plan.splits.end_of_file(first)
            if file in scanned and after - first > 1:
                self.chains[file] = Chain(file, first, after - 1 - first)
                self.tasks += _chunk_count(after - 1 - first)
                self.bytes_total += plan.splits[after - 1].offset - plan.splits[first].offset
            elif self.unscanned and self.unscanned[-1].stop == first:
                self.unscanned[-1] = range(self.unscanned[-1].start, after)
            else:
                self.unscanned.append(range(first, after))
            first = after
        if first < end:
            self.unscanned = [range(end)]
        self._cutting = {file: self._cut(chain) for file, chain in self.chains.items()}

    def _cut(self, chain: Chain) -> Iterator[int]:
        k = 0
        for size in _chunk_sizes(chain.last):
            self.chunks[chain.first + k] = Chunk(chain, k, size)
            yield chain.first + k
            k += size

    def cut_next(self, file: int) -> int | None:
        """The file's next scan task, in the order of the splits; None when all are cut."""
        index = next(self._cutting[file], None)
        if index is not None:
            self.last_cut[file] = index
        return index

    def is_known(self, index: int) -> bool:
        """Are both states of this split known, as far as they matter?"""
        chain = self.chains.get(self._splits.file_of(index))
        return chain is None or chain.front >= min(index - chain.first + 1, chain.last)

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
        splits = range(index, index + chunk.count + 1)
        return ScanTask(chain.file, tuple(self._splits[i].offset for i in splits), chain.states[chunk.k])

    def bytes_of(self, index: int) -> int:
        """What a scan task reads."""
        return self._splits[index + self.chunks[index].count].offset - self._splits[index].offset

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
        self._forget_passed(chain)
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

    def _forget_passed(self, chain: Chain) -> None:
        """What the front has passed is never scanned again."""
        while chain.passed < chain.front:
            chunk = self.chunks[chain.first + chain.passed]
            if chunk.k + chunk.count > chain.front:
                return
            chain.passed += chunk.count
            del self.chunks[chain.first + chunk.k]
