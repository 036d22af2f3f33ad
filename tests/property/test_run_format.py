"""Whatever is written to a run file is read back, row for row, in either compression."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.storage.filesystem import LocalFilesystem
from cortex.storage.run_reader import RunFileReader
from cortex.storage.run_writer import RunFileWriter

values = st.one_of(st.none(), st.text(max_size=30), st.text("ab", min_size=50, max_size=300))
row = st.tuples(st.integers(0, 2**64 - 1), values, st.one_of(st.none(), st.floats(allow_nan=False)))
batch_rows = st.lists(row, min_size=0, max_size=40)
run = st.lists(st.tuples(st.integers(0, 6), batch_rows), max_size=8)
SCHEMA = pa.schema([("h", pa.uint64()), ("k", pa.string()), ("v", pa.float64())])


def arrow(rows: list[tuple[int, str | None, float | None]]) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    return pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


@given(runs=st.lists(run, max_size=4), compression=st.sampled_from(["lz4", None]), cut=st.booleans())
@settings(max_examples=60, deadline=None)
def test_round_trip(runs: list, compression: str | None, cut: bool) -> None:  # type: ignore[type-arg]
    expected: list[dict[int, list[tuple]]] = []  # type: ignore[type-arg]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "run"))
        writer = RunFileWriter(LocalFilesystem(), path, compression)  # type: ignore[arg-type]
        for blocks in runs:
            segments: dict[int, list[tuple]] = {}  # type: ignore[type-arg]
            for partition, rows in blocks:
                segments.setdefault(partition, []).extend(rows)
            writer.begin_run(SCHEMA)
            for partition in sorted(segments):
                rows = sorted(segments[partition], key=lambda r: r[0])
                segments[partition] = rows
                for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
                    whole = arrow([rows[0], *part, rows[0]]) if cut and part else arrow(part)
                    piece = whole.slice(1, len(part)) if cut and part else whole
                    writer.append(partition, piece, part[0][0] if part else 0, part[-1][0] if part else 0)
            writer.end_run()
            expected.append(segments)
        summary = writer.close()
        assert summary.bytes == Path(path).stat().st_size
        reader = RunFileReader(LocalFilesystem(), path)
        found = [
            {p: [tuple(r.values()) for b in run.batches(p) for r in b.to_pylist()] for p in segments}
            for run, segments in zip(reader.runs, expected, strict=True)
        ]
        assert found == expected
        for partition in range(7):
            count = summary.partition_rows[partition] if partition < len(summary.partition_rows) else 0
            assert count == sum(len(segments.get(partition, [])) for segments in expected)
            assert RunFileReader(LocalFilesystem(), path, partition=partition).rows() == count
        for run in reader.runs:
            entries = run.all_entries
            assert (entries["first_hash"] <= entries["last_hash"]).all()
