"""The input plan: which files, what columns, and where the splits are.

Made by a plan task (`cortex.formats.planning.plan_inputs`) from the input alone: it never depends on
nodes, slots or memory, so neither does the output.
"""

from __future__ import annotations

import msgspec

from cortex.job.spec import CsvDialect

# Quote state of a CSV reader before a byte, in its own automaton (see cortex.formats.csv_records).
OUT, IN, CLOSED = 0, 1, 2
"""Outside quotes; inside a quoted field; outside, right after a quote that closed a field."""
UNKNOWN = -1


class InputFile(msgspec.Struct, frozen=True):
    """One input file as planned. `columns` are its own, in its order: (name, Arrow type name)."""

    index: int
    path: str
    format: str
    size_bytes: int
    modified_ns: int
    inode: int
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


class Split(msgspec.Struct, frozen=True, gc=False):  # a plan may have a million: no cycles to look for
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


class InputPlan(msgspec.Struct, frozen=True):
    """`tasks[i]` lists the splits of map i, in input order; small files share a map."""

    files: tuple[InputFile, ...]
    splits: tuple[Split, ...]
    tasks: tuple[tuple[int, ...], ...]
    columns: tuple[tuple[str, str], ...]
    """The job's input columns (name, Arrow type name): those it uses. Text: (("line", "string"),)."""
    total_bytes: int
    reducers: int
    notes: tuple[str, ...] = ()
    """What the user should know, such as a file that cannot be split."""
