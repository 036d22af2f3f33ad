"""Record batches read some rows at a time: the rows are what pyarrow reads, or the file is damaged."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cortex.errors import InputError
from cortex.formats.arrow_metadata import read_batch, read_footer
from cortex.formats.arrow_rows import BatchRows
from cortex.formats.input_bytes import open_local
from cortex.formats.input_files import describe_file
from cortex.formats.planning import plan_inputs
from cortex.formats.readers import open_reader
from cortex.job.spec import InputSpec

_RELAXED = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])

_numbers = st.integers(-100, 100)
_texts = st.text(max_size=6)
_COLUMNS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
    "null": (pa.null(), st.none()),
    "bool": (pa.bool_(), st.booleans()),
    "int8": (pa.int8(), _numbers),
    "float": (pa.float64(), _numbers),
    "decimal": (pa.decimal128(12, 2), _numbers),
    "fixed": (pa.binary(3), st.binary(min_size=3, max_size=3)),
    "date": (pa.date32(), st.dates()),
    "text": (pa.string(), _texts),
    "bytes": (pa.binary(), st.binary(max_size=5)),
    "large": (pa.large_string(), _texts),
    "list": (pa.list_(pa.string()), st.lists(st.none() | _texts, max_size=3)),
    "lists": (pa.list_(pa.list_(pa.int16())), st.lists(st.lists(_numbers, max_size=3), max_size=3)),
    "struct": (
        pa.struct([("a", pa.int32()), ("b", pa.list_(pa.string())), ("c", pa.bool_())]),
        st.fixed_dictionaries(
            {"a": st.none() | _numbers, "b": st.none() | st.lists(_texts, max_size=2), "c": st.booleans()}
        ),
    ),
    # These are only stepped over, or read whole.
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), _texts),
    "view": (pa.string_view(), st.text(max_size=20)),
    "map": (pa.map_(pa.string(), pa.int8()), st.dictionaries(_texts, _numbers, max_size=2)),
    "fixed list": (pa.list_(pa.int8(), 2), st.lists(_numbers, min_size=2, max_size=2)),
    "list view": (pa.list_view(pa.int8()), st.lists(_numbers, max_size=2)),
    "uuid": (pa.uuid(), st.binary(min_size=16, max_size=16)),
}
_READ = [name for name in _COLUMNS if name not in ("map", "fixed list", "list view", "uuid")]
_BY_ROWS = [name for name in _READ if name not in ("dictionary", "view")]


@st.composite
def _batches(draw: st.DrawFn) -> pa.RecordBatch:
    rows = draw(st.integers(1, 40))
    names = draw(st.permutations(list(_COLUMNS)))
    columns = []
    for name in names:
        kind, values = _COLUMNS[name]
        cell = values if draw(st.booleans()) else st.none() | values
        storage = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
        array = pa.array(draw(st.lists(cell, min_size=rows, max_size=rows)), storage)
        columns.append(pa.ExtensionArray.from_storage(kind, array) if storage != kind else array)
    return pa.record_batch(columns, names=names).slice(draw(st.integers(0, rows - 1)))


def _write(path: str, batch: pa.RecordBatch, **options: Any) -> None:
    with pa.ipc.new_file(path, batch.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(batch.slice(0, 1))
        writer.write_batch(batch)


@_RELAXED
@given(_batches(), st.data())
def test_any_rows_of_any_column_are_the_ones_pyarrow_reads(
    batch: pa.RecordBatch, data: st.DataObject
) -> None:
    with tempfile.NamedTemporaryFile() as file:
        _write(file.name, batch)
        opened = open_local(describe_file(0, file.name, InputSpec((file.name,))))
        block = read_footer(opened).batches[1]
        rows = BatchRows(opened, read_batch(opened, block), batch.schema)
        assert [name for name in _COLUMNS if rows.readable(name)] == _BY_ROWS
        for name in _BY_ROWS:
            low = data.draw(st.integers(0, batch.num_rows))
            high = data.draw(st.integers(low, batch.num_rows))
            read = rows.read(name, low, high)
            assert read.type == batch.schema.field(name).type
            assert read.to_pylist() == batch.column(name).slice(low, high - low).to_pylist()


@pytest.mark.parametrize("options", [{}, {"compression": "lz4"}, {"compression": "zstd"}])
@_RELAXED
@given(batch=_batches(), wanted=st.sets(st.sampled_from(_READ), min_size=1), block=st.sampled_from([1, 300]))
def test_a_reader_gives_all_rows_whatever_a_block_is(
    options: dict[str, Any], batch: pa.RecordBatch, wanted: set[str], block: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "f.arrow")
        _write(path, batch, **options)
        plan = plan_inputs(InputSpec(paths=(path,)), used_columns=sorted(wanted), split_bytes=1)
        assert [split.rows for split in plan.splits] == [1, batch.num_rows]
        got: list[Any] = []
        for split in plan.splits:
            with open_reader(plan.files[0], split, plan.columns, block_bytes=block) as reader:
                for part in reader:
                    assert reader.describe(0) == (-1, f"row {len(got)} of the file")
                    got += part.to_pylist()
                assert reader.bytes_read == split.length
    plain = batch.select(sorted(wanted)).to_pylist()
    assert got == [plain[0], *plain]


def test_a_batch_larger_than_memory_is_read_a_block_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "f.arrow"
    table = pa.table({"n": np.arange(500_000), "s": [f"{n:040}" for n in range(500_000)]})
    _write(str(path), table.combine_chunks().to_batches()[0])
    plan = plan_inputs(InputSpec(paths=(str(path),)), used_columns=None)
    rows, largest = 0, 0
    for split in plan.splits:
        with open_reader(plan.files[0], split, plan.columns, block_bytes=1 << 20) as reader:
            for part in reader:
                rows, largest = rows + part.num_rows, max(largest, part.get_total_buffer_size())
    assert rows == 500_001
    assert largest < 2 << 20


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_damage_is_an_input_error_whatever_it_asks_for(tmp_path: Path, compression: str | None) -> None:
    path = tmp_path / "f.arrow"
    table = pa.table(
        {"n": range(300), "s": [str(n % 7) * (n % 5) for n in range(300)], "l": [[n] for n in range(300)]}
    )
    table = table.append_column("d", table.column("s").dictionary_encode())
    _write(str(path), table.combine_chunks().to_batches()[0], compression=compression)
    data = path.read_bytes()
    random = np.random.default_rng(7)
    causes = []
    for _ in range(400):
        damaged = bytearray(data)
        for at in random.integers(0, len(data), random.integers(1, 4)):
            damaged[at] = random.integers(256)
        path.write_bytes(damaged)
        try:
            plan = plan_inputs(InputSpec(paths=(str(path),)), used_columns=None)
            for split in plan.splits:
                for block in (1, 1 << 20):
                    with open_reader(plan.files[0], split, plan.columns, block_bytes=block) as reader:
                        list(reader)
        except InputError as error:
            causes.append(error.__cause__)
    assert len(causes) > 50
    assert not any(isinstance(cause, MemoryError) for cause in causes)
