"""`plan_inputs`: what a job reads. Files, columns and their types, splits, maps and reducers.

The plan depends on the input's bytes and on what the user said, never on nodes, slots or memory, so that
the output does not either. Types are decided here once; a value that does not fit one later is an error.
"""

from __future__ import annotations

import contextlib
import difflib
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
import pyarrow as pa

from cortex.errors import ColumnError, InputError, UsageError
from cortex.job.data_names import is_data_name
from cortex.job.plan import (
    OUT,
    UNKNOWN,
    ClientFiles,
    DataFiles,
    InputFile,
    InputPlan,
    Split,
    SplitGroups,
    Splits,
    SplitsMade,
)
from cortex.job.spec import InputSpec
from cortex.job.types import arrow_type, columns_line, type_name
from cortex.limits import (
    DATA_PACK_BYTES,
    INFER_FILES_MAX,
    REDUCER_INPUT_BYTES,
    REDUCERS_AUTO_MAX,
    REDUCERS_FEW,
    SMALL_FILES_PER_TASK_MAX,
    SPLIT_BYTES,
    SPLIT_BYTES_MIN,
    SPLIT_SLOP,
    SPLITS_MAX,
    SPLITS_WANTED,
)

from . import arrow_file, parquet_file
from .columnar import Unit, packed, plain_type
from .csv_schema import Sample, check_types, read_head
from .input_bytes import Opener, Soon, announced, at_hand, open_local
from .input_files import GZIP_REASON, find_files
from .sources import UTF8_BOM, open_source

LINE_COLUMN = "line"


@dataclass
class _Found:
    """One file with what its header or metadata says. `types` lacks columns that were not looked at."""

    file: InputFile
    names: tuple[str, ...] = ()
    types: dict[str, pa.DataType] = field(default_factory=dict)
    units: list[Unit] = field(default_factory=list)
    too_large: list[str] = field(default_factory=list)
    sample: Sample | None = None

    @property
    def empty(self) -> bool:
        """True for a file without even a header: it has no columns to check."""
        return not self.names


def plan_inputs(
    spec: InputSpec,
    *,
    used_columns: Sequence[str] | None,
    split_bytes: int = 0,
    reducers: int = -1,
    client_files: ClientFiles = (),
    data_files: DataFiles = (),
    open_input: Opener = open_local,
    soon: Soon = at_hand,
    one_machine: bool = True,
) -> InputPlan:
    """The plan of a job's input.

    `used_columns` None means all; an empty sequence (a job that only counts) gives one column that is cheap
    to read. `split_bytes` 0 is `default_split_bytes`; `reducers` -1 derives their number from the input.
    `client_files` are those that the client found, `data_files` those that nodes did, `open_input` opens
    files, `soon` hears of them before.
    Not `one_machine`: others will read what is found here, so inodes say nothing.

    Raises InputError for input that does not exist or cannot be read, ColumnError for a column that a
    file does not have, UsageError for a type or a split size that cannot be.
    """
    found = _find(spec, list(find_files(spec, client_files, data_files)), open_input, soon, one_machine)
    notes = _unsplittable_notes(found)
    names = _used_names(found, spec, used_columns)
    _check_declared(found, spec)
    counting = used_columns is not None and not used_columns
    columns = _columns(found, spec, names, notes, counting=counting)
    files = [_with_columns(f, dict(columns)) for f in found]
    total = sum(f.size_bytes for f in files)
    split_bytes = split_bytes or default_split_bytes(total)
    splits, files = _splits(files, [f.units for f in found], split_bytes)
    if reducers < 0:
        reducers = default_reducers(total)
    return InputPlan(
        files=tuple(files),
        splits=splits,
        tasks=_tasks(splits, split_bytes, {file.index for file in files if is_data_name(file.path)}),
        columns=tuple((name, type_name(data_type)) for name, data_type in columns),
        total_bytes=total,
        reducers=reducers,
        notes=tuple(notes),
    )


def default_split_bytes(total_bytes: int) -> int:
    """`SPLIT_BYTES`, or less where that would leave the processors of one machine without a split."""
    return min(SPLIT_BYTES, max(SPLIT_BYTES_MIN, total_bytes // SPLITS_WANTED))


def default_reducers(total_bytes: int) -> int:
    """One for each `REDUCER_INPUT_BYTES`; a few for smaller inputs, one where there is little to do."""
    few = min(REDUCERS_FEW, total_bytes // SPLIT_BYTES_MIN // 2)
    return max(1, few, min(REDUCERS_AUTO_MAX, -(-total_bytes // REDUCER_INPUT_BYTES)))


# --- files and what they say of themselves ---------------------------------------------------------------


def _find(
    spec: InputSpec, files: Sequence[InputFile], open_input: Opener, soon: Soon, one_machine: bool
) -> list[_Found]:
    found = []
    sampled = 0
    for file in announced(files, lambda file: file, soon):
        if not one_machine:
            file = msgspec.structs.replace(file, inode=0)
        if file.format == "text":
            found.append(_find_text(file, open_input))
        elif file.format in ("csv", "tsv"):
            one = _find_csv(file, spec, open_input, infer=sampled < INFER_FILES_MAX)
            sampled += not one.empty
            found.append(one)
        else:
            found.append(_find_columnar(file, open_input))
    return found


def _find_text(file: InputFile, open_input: Opener) -> _Found:
    raw = file.encoding == "bytes"
    if not raw:
        source = open_source(file, open_input)
        try:
            data, count, _ = source.window(0, 3)
            if count >= 3 and data[:3] == UTF8_BOM:
                file = msgspec.structs.replace(file, data_start=3)
        finally:
            source.close()
    return _Found(file, (LINE_COLUMN,), {LINE_COLUMN: pa.binary() if raw else pa.string()})


def _find_csv(file: InputFile, spec: InputSpec, open_input: Opener, *, infer: bool) -> _Found:
    source = open_source(file, open_input)
    try:
        head = read_head(source, spec.columns)
        one = _Found(msgspec.structs.replace(file, data_start=head.data_start), head.names)
        if infer and head.names:
            one.sample = Sample(source, head)
            one.types, one.too_large = one.sample.types()
        return one
    finally:
        source.close()


def _find_columnar(file: InputFile, open_input: Opener) -> _Found:
    layout = parquet_file.read_layout if file.format == "parquet" else arrow_file.read_layout
    with contextlib.closing(open_input(file)) as data:
        schema, units = layout(data)
    doubled = {name for name in schema.names if schema.names.count(name) > 1}
    if doubled:
        raise InputError(
            f"columns named more than once: {', '.join(sorted(doubled))}",
            details={"file": file.path},
            cure="write the file with a name of its own for every column",
        )
    types = {f.name: plain_type(f.type) for f in schema}
    return _Found(file, tuple(schema.names), types, units)


def _unsplittable_notes(found: Iterable[_Found]) -> list[str]:
    paths: dict[str, list[str]] = {}
    for one in found:
        if one.file.unsplittable:
            paths.setdefault(one.file.unsplittable, []).append(one.file.path)
    notes = []
    for reason, names in paths.items():
        what = names[0] if len(names) == 1 else f"{len(names)} files, such as {names[0]},"
        cure = "; decompressed it could be" if reason == GZIP_REASON else ""
        notes.append(f"{what} cannot be split: {reason}{cure}")
    return notes


# --- columns ---------------------------------------------------------------------------------------------


def _no_column(name: str, one: _Found, what: str = "") -> ColumnError:
    near = difflib.get_close_matches(name, one.names, n=1)
    shown = ", ".join(one.names[:20]) + (", …" if len(one.names) > 20 else "")
    return ColumnError(
        f"no column {name!r}{what}",
        details={"file": one.file.path, "columns": shown},
        cure=_cure_of_names(one, what)
        or (f"did you mean {near[0]!r}?" if near else "name one of these columns"),
    )


def _cure_of_names(one: _Found, what: str) -> str:
    """What helps where it is not the name that is wrong."""
    if len(one.names) == 1 and one.file.format in ("csv", "tsv"):
        for delimiter in (";", "\t", "|", ","):
            if delimiter in one.names[0]:
                return (
                    f"the first line has one column; say delimiter: {delimiter!r} (in job.yaml, below input)"
                )
    return "read files of different columns in jobs of their own" if "which" in what else ""


def _used_names(found: list[_Found], spec: InputSpec, used: Sequence[str] | None) -> list[str]:
    """The names of the columns to read; every file with a header has them."""
    full = [one for one in found if not one.empty]
    if not full:
        return list(dict.fromkeys(used or spec.columns))
    first = full[0]
    if used is None:
        names = list(first.names)
    else:
        names = list(dict.fromkeys(used)) or [_cheapest(first)]
    for one in full:
        has = set(one.names)
        for name in names:
            if name not in has:
                where = "" if one is first or used is not None else f", which {first.file.path} has"
                raise _no_column(name, one, where)
        if used is None and len(has) > len(names):
            extra = next(name for name in one.names if name not in set(names))
            raise _no_column(extra, first, f", which {one.file.path} has")
    return names


def _check_declared(found: list[_Found], spec: InputSpec) -> None:
    for one in found:
        for name in spec.columns if not one.empty else ():
            if name not in one.names:
                raise _no_column(name, one, " (named under columns:)")


def _columns(
    found: list[_Found], spec: InputSpec, names: list[str], notes: list[str], *, counting: bool
) -> list[tuple[str, pa.DataType]]:
    if counting and all(one.file.format in ("csv", "tsv") for one in found):
        return [(name, pa.binary()) for name in names[:1]]  # of any bytes: its values are not looked at
    columns = []
    for name in names:
        if name in spec.columns:
            data_type = _declared(name, spec.columns[name], found)
        else:
            data_type = _decided(name, found, notes)
        columns.append((name, data_type))
    for one in found:
        if one.file.format in ("csv", "tsv") and not one.empty:
            for name, data_type in columns:
                try:
                    check_types(one.file, one.names, {name: data_type})
                except pa.ArrowNotImplementedError as error:
                    raise ColumnError(
                        f"column {name!r}: {type_name(data_type)} cannot be read from CSV",
                        details={"file": one.file.path},
                        cure=f"declare another type: {columns_line(name, 'string')}",
                    ) from error
            break
    return columns


def _declared(name: str, type_: str, found: list[_Found]) -> pa.DataType:
    data_type = arrow_type(type_)
    for one in found:
        own = one.types.get(name)
        if one.file.format == "text" and own is not None and data_type != own:
            raise ColumnError(
                f"text lines are {type_name(own)}, not {type_}",
                details={"file": one.file.path},
                cure="leave columns: out; encoding: bytes gives bytes",
            )
    return data_type


def _decided(name: str, found: list[_Found], notes: list[str]) -> pa.DataType:
    """One type for a column from what the files say; InputError if they do not agree."""
    decided: pa.DataType | None = None
    by: _Found | None = None
    for one in found:
        own = one.types.get(name)
        if own is None or pa.types.is_null(own):
            continue
        if one.sample is not None and own == pa.binary():
            one.sample.check_utf8(name)
        if name in one.too_large:
            notes.append(
                f"column {name!r} of {one.file.path} has integers too large for int64, "
                "or for float64 and with a +: read as string"
            )
        if decided is None or by is None:
            decided, by = own, one
            continue
        both = _common(decided, own)
        if both is None:
            raise InputError(
                f"column {name!r} is {type_name(decided)} in one file and {type_name(own)} in another",
                details={"file": by.file.path, "other file": one.file.path},
                cure=f"say which it is: {columns_line(name, 'string')}",
            )
        if both not in (decided, own) or pa.types.is_integer(decided) != pa.types.is_integer(own):
            notes.append(
                f"column {name!r} is {type_name(decided)} in {by.file.path} and {type_name(own)} in "
                f"{one.file.path}: read as {type_name(both)}"
            )
        decided = both
    if decided is None:
        return pa.string()
    try:
        return arrow_type(type_name(decided))
    except UsageError as error:
        where = {"file": by.file.path if by else ""}
        if pa.types.is_timestamp(decided):
            raise ColumnError(
                f"column {name!r}: there is no time zone {decided.tz!r}",
                details=where,
                cure=columns_line(name, f"timestamp[{decided.unit}, tz=UTC]"),
            ) from error
        raise ColumnError(
            f"column {name!r} has a type that jobs cannot use: {decided}",
            details=where,
            cure="read other columns, or write the file with a plain type",
        ) from error


def _common(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The type for a column that is `a` in one file and `b` in another; None if there is none.

    An integer column meets a float one as float64: decided here, in the plan, and noted.
    """
    is_ = pa.types
    if a == b:
        return a
    if is_.is_integer(a) and is_.is_integer(b):
        if pa.uint64() in (a, b) and (is_.is_signed_integer(a) or is_.is_signed_integer(b)):
            return None
        return pa.uint64() if pa.uint64() in (a, b) else pa.int64()
    numbers = [t for t in (a, b) if is_.is_integer(t) or is_.is_floating(t)]
    if len(numbers) == 2:
        return pa.float64()
    if is_.is_timestamp(a) and is_.is_timestamp(b) and a.tz == b.tz:
        return pa.timestamp(max(a.unit, b.unit, key=["s", "ms", "us", "ns"].index), a.tz)
    return None


def _cheapest(one: _Found) -> str:
    """The column to read when rows are only counted."""

    def width(name: str) -> int:
        try:
            return int(one.types[name].bit_width)
        except (KeyError, ValueError):  # not looked at, or no fixed width
            return 1 << 30

    return min(one.names, key=width)


def _with_columns(one: _Found, planned: dict[str, pa.DataType]) -> InputFile:
    """The file with its own columns: of CSV, the planned types of those that the job reads."""
    own = dict(one.types)
    if one.file.format in ("csv", "tsv"):
        own.update({name: planned[name] for name in one.names if name in planned})
    columns = []
    for name in one.names:
        data_type = own.get(name, pa.string())
        columns.append((name, type_name(pa.string() if pa.types.is_null(data_type) else data_type)))
    return msgspec.structs.replace(one.file, columns=tuple(columns))


# --- splits ----------------------------------------------------------------------------------------------


def _splits(
    files: list[InputFile], units: list[list[Unit]], split_bytes: int
) -> tuple[Splits, list[InputFile]]:
    splits = SplitsMade()
    scanned = []
    for file, file_units in zip(files, units):
        if file.format in ("parquet", "arrow"):
            _split_units(splits, file, file_units, split_bytes)
        elif file.unsplittable:
            start = 0 if file.compression else file.data_start
            if file.size_bytes > start and file.columns:
                splits.add(Split(len(splits), file.index, start, file.size_bytes - start))
        elif file.columns:
            file = _split_bytes(splits, file, split_bytes)
        scanned.append(file)
    return splits.done(), scanned


def _split_bytes(splits: SplitsMade, file: InputFile, split_bytes: int) -> InputFile:
    """Hadoop's rule: the last split may be `SPLIT_SLOP` times as large rather than leave a sliver."""
    count = -(-(file.size_bytes - file.data_start) // split_bytes)
    if len(splits) + count > SPLITS_MAX:
        raise UsageError(
            f"a split size of {split_bytes} bytes gives more than {SPLITS_MAX:,} splits",
            cure=f"use at least {-(-file.size_bytes // SPLITS_MAX) * 2} bytes",
        )
    bounds = [file.data_start]
    while file.size_bytes - bounds[-1] > split_bytes * SPLIT_SLOP:
        bounds.append(bounds[-1] + split_bytes)
    if file.size_bytes > bounds[-1]:
        bounds.append(file.size_bytes)
    parts = len(bounds) - 1
    scan = parts > 1 and file.dialect is not None and file.dialect.quote != ""
    between = UNKNOWN if scan else OUT
    for part in range(parts):
        splits.add(
            Split(
                index=len(splits),
                file=file.index,
                offset=bounds[part],
                length=bounds[part + 1] - bounds[part],
                start_state=OUT if part == 0 else between,
                end_state=between,
            )
        )
    return msgspec.structs.replace(file, needs_scan=scan)


def _split_units(splits: SplitsMade, file: InputFile, units: list[Unit], split_bytes: int) -> None:
    for group in packed(units, split_bytes):
        part = units[group.start : group.stop]
        splits.add(
            Split(
                index=len(splits),
                file=file.index,
                offset=part[0].offset,
                length=sum(unit.length for unit in part),
                rows=sum(unit.rows for unit in part),
                first_unit=group.start,
                units=len(group),
            )
        )


def _tasks(splits: Splits, split_bytes: int, data: Container[int]) -> SplitGroups:
    """Maps in input order: each split is one, except that whole small files share one. Those of the files
    `data` are small: where they lie is not looked at, for the plan is the same wherever that is."""
    parts_of_file = Counter(split.file for split in splits)
    groups: list[range] = []
    room = 0  # bytes that the last task still takes; 0 when it takes no more
    for split in splits:
        whole = parts_of_file[split.file] == 1
        if whole and room and split.length <= room and len(groups[-1]) < SMALL_FILES_PER_TASK_MAX:
            groups[-1] = range(groups[-1].start, split.index + 1)
        else:
            groups.append(range(split.index, split.index + 1))
            room = (
                0 if not whole else min(split_bytes, DATA_PACK_BYTES) if split.file in data else split_bytes
            )
        room = max(0, room - split.length)
    return SplitGroups.of(groups)
