"""The input plan: which files, what columns, and where the splits are.

Made by a plan task (`cortex.formats.planning.plan_inputs`) from the input alone: it never depends on
nodes, slots or memory, so neither does the output.

A plan may have a million splits, and crosses three processes: they are packed, 38 bytes each, and become
`Split` objects one at a time where they are used.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import msgspec

from cortex.job.spec import CsvDialect

# Quote state of a CSV reader before a byte, in its own automaton (see cortex.formats.csv_records).
OUT, IN, CLOSED = 0, 1, 2
"""Outside quotes; inside a quoted field; outside, right after a quote that closed a field."""
UNKNOWN = -1


class ClientFile(msgspec.Struct, frozen=True, array_like=True, gc=False):  # a job may have 100,000
    """An input file as the client has it. One that nodes have, below their data roots, is called by its data
    name, and has no time: each node's is its own."""

    path: str
    size_bytes: int
    modified_ns: int
    fingerprint: bytes = b""
    """See `cortex.storage.fingerprint`."""
    real_path: str = ""
    """Where it lies when `path` leads there by links."""


ClientFiles = tuple[tuple[ClientFile, ...] | None, ...]
"""For each of a spec's paths what the client found behind it, less what an earlier one led to; None: nothing,
so nodes look. A file's place in all of them together is the id that it is read by."""

DataFiles = tuple[tuple[ClientFile, ...], ...]
"""For each of a spec's data names the files that nodes found, sorted by name. Their ids follow the
client's."""


class InputFile(msgspec.Struct, frozen=True):
    """One input file as planned. `columns` are its own, in its order: (name, Arrow type name)."""

    index: int
    path: str
    format: str
    size_bytes: int
    modified_ns: int
    inode: int
    """0 where several machines read it: each may number it differently."""
    columns: tuple[tuple[str, str], ...] = ()
    dialect: CsvDialect | None = None
    compression: str = ""
    """``gzip`` or ""."""
    data_start: int = 0
    """Offset of the first record: past a byte order mark and a header."""
    encoding: str = "utf-8"
    unsplittable: str = ""
    """Why the file is one split; "" if it can be split."""
    needs_scan: bool = False
    """True: a split's start state is known only by scanning what lies before it (quoted newlines)."""
    client_file: int = -1
    """Its id among the files that the client or the nodes' data roots have; -1 for one that a node found."""
    fingerprint: bytes = b""
    """Of a file with an id."""


class Split(msgspec.Struct, frozen=True, gc=False):
    """A part of one file. For text and CSV: the records that *start* in [offset, offset + length).

    For Parquet and Arrow IPC: row groups or record batches [first_unit, first_unit + units), and
    offset and length are the bytes they lie in. `rows` is -1 where the format does not know.
    """

    index: int
    file: int
    offset: int
    length: int
    rows: int = -1
    first_unit: int = 0
    units: int = 0
    start_state: int = OUT
    """Quote state before byte `offset`; UNKNOWN until scanned."""
    end_state: int = OUT
    """Quote state before byte `offset + length`."""


_SPLIT = struct.Struct("<IqqqIIbb")  # the fields of Split after `index`, which is its place
_FILE = struct.Struct("<I")  # the first of them
_LENGTH, _LENGTH_AT = struct.Struct("<q"), 12  # behind file and offset
_END = struct.Struct("<I")


class Splits(msgspec.Struct, frozen=True, gc=False):
    """Splits 0 .. n-1, packed: a sequence of `Split`. Make it with `Splits.of`."""

    packed: bytes = b""

    def __post_init__(self) -> None:
        if len(self.packed) % _SPLIT.size:
            raise ValueError(f"{len(self.packed)} bytes are no whole splits")

    @staticmethod
    def of(splits: Iterable[Split]) -> Splits:
        """Raises ValueError where a split's `index` is not its place."""
        made = SplitsMade()
        for split in splits:
            made.add(split)
        return made.done()

    def __len__(self) -> int:
        return len(self.packed) // _SPLIT.size

    def __iter__(self) -> Iterator[Split]:
        for place, fields in enumerate(_SPLIT.iter_unpack(self.packed)):
            yield Split(place, *fields)

    @overload
    def __getitem__(self, place: int) -> Split: ...
    @overload
    def __getitem__(self, place: slice) -> list[Split]: ...
    def __getitem__(self, place: int | slice) -> Split | list[Split]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        return Split(place, *_SPLIT.unpack_from(self.packed, place * _SPLIT.size))

    def file_of(self, place: int) -> int:
        """`self[place].file`, and nothing else of it."""
        file: int = _FILE.unpack_from(self.packed, place * _SPLIT.size)[0]
        return file

    def bytes_of(self, places: range) -> int:
        """The sum of their lengths."""
        size, packed = _SPLIT.size, self.packed
        total = 0
        for place in places:
            total += _LENGTH.unpack_from(packed, place * size + _LENGTH_AT)[0]
        return total

    def end_of_file(self, first: int) -> int:
        """One behind the last split of the file whose first split this is.

        By search, not by looking at each: files are in ascending order in a plan. Raises ValueError where
        it is seen that they are not.
        """
        file, size = self.file_of(first), len(self)
        step = 1
        while first + step < size and self.file_of(first + step) <= file:
            step *= 2
        places = range(first + step // 2, min(first + step, size))
        end = places.start + bisect.bisect_right(places, file, key=self.file_of)
        if self.file_of(end - 1) != file:
            raise ValueError(f"the splits of file {file} do not stand together in the plan")
        return end


class SplitsMade:
    """Splits being packed one after the other: no object is kept for each."""

    def __init__(self) -> None:
        self._packed = bytearray()

    def __len__(self) -> int:
        return len(self._packed) // _SPLIT.size

    def add(self, s: Split) -> None:
        if s.index != len(self):
            raise ValueError(f"split {s.index} stands at place {len(self)} of the plan")
        self._packed += _SPLIT.pack(
            s.file, s.offset, s.length, s.rows, s.first_unit, s.units, s.start_state, s.end_state
        )

    def done(self) -> Splits:
        return Splits(bytes(self._packed))


class SplitGroups(msgspec.Struct, frozen=True, gc=False):
    """Splits in groups of neighbours, packed: a sequence of ranges. Make it with `SplitGroups.of`."""

    packed: bytes = b""

    def __post_init__(self) -> None:
        if len(self.packed) % _END.size:
            raise ValueError(f"{len(self.packed)} bytes are no whole groups")

    @staticmethod
    def of(groups: Iterable[Sequence[int]]) -> SplitGroups:
        """Group after group must have the numbers 0, 1, 2 ...: ValueError if not."""
        packed, end = bytearray(), 0
        for group in groups:
            if list(group) != list(range(end, end + len(group))):
                raise ValueError(f"a group of splits that are not neighbours from split {end} on")
            end += len(group)
            packed += _END.pack(end)
        return SplitGroups(bytes(packed))

    def __len__(self) -> int:
        return len(self.packed) // _END.size

    def __iter__(self) -> Iterator[range]:
        start = 0
        for (end,) in _END.iter_unpack(self.packed):
            yield range(start, end)
            start = end

    def __getitem__(self, place: int) -> range:
        place = range(len(self))[place]
        return range(self._end(place - 1) if place else 0, self._end(place))

    def group_of(self, split: int) -> int:
        """The group that a split is in."""
        return bisect.bisect_right(range(len(self)), split, key=self._end)

    def _end(self, place: int) -> int:
        end: int = _END.unpack_from(self.packed, place * _END.size)[0]
        return end


class InputPlan(msgspec.Struct, frozen=True):
    """`tasks[i]` lists the splits of map i, in input order; small files share a map."""

    files: tuple[InputFile, ...]
    splits: Splits
    tasks: SplitGroups
    columns: tuple[tuple[str, str], ...]
    """The job's input columns (name, Arrow type name): those it uses. Text: (("line", "string"),)."""
    total_bytes: int
    reducers: int
    notes: tuple[str, ...] = ()
    """What the user should know, such as a file that cannot be split."""

    def bare(self) -> InputPlan:
        """The plan as nodes are sent it: without splits, which each map brings along."""
        return msgspec.structs.replace(self, splits=Splits(), tasks=SplitGroups())
