"""The bare loop: two processes, each parses its half of a CSV with pyarrow and groups every block.

Arguments: input, output, processes. What cortex adds to this (splits, spills, one output folder,
exact sums) is what the ratio shows.
"""

import itertools
import multiprocessing
import os
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

BLOCK_BYTES = 4 << 20
AGGREGATES = [("temp", "min"), ("temp", "sum"), ("temp", "max"), ("temp", "count")]
READ = pacsv.ReadOptions(use_threads=False, column_names=["station", "temp"], block_size=2 * BLOCK_BYTES)
TYPES = pacsv.ConvertOptions(column_types={"station": pa.string(), "temp": pa.float64()})


def line_start(file, offset: int) -> int:
    """The start of the first line at or behind `offset`; behind the header for 0."""
    file.seek(max(0, offset - 1))
    file.readline()
    return file.tell()


def part(job):
    path, begin, end = job
    pa.set_cpu_count(1)
    partials = []
    with open(path, "rb") as file:
        at, stop = line_start(file, begin), line_start(file, end)
        while at < stop:
            file.seek(at)
            block = file.read(min(BLOCK_BYTES, stop - at))
            if at + len(block) < stop:
                block = block[: block.rfind(b"\n") + 1]
            at += len(block)
            table = pacsv.read_csv(pa.BufferReader(block), read_options=READ, convert_options=TYPES)
            partials.append(table.group_by("station", use_threads=False).aggregate(AGGREGATES))
    return merged(partials)


def merged(partials):
    wanted = [("temp_min", "min"), ("temp_sum", "sum"), ("temp_max", "max"), ("temp_count", "sum")]
    table = pa.concat_tables(partials).group_by("station", use_threads=False).aggregate(wanted)
    return table.rename_columns(["station", "temp_min", "temp_sum", "temp_max", "temp_count"])


def main(path: str, output: str, processes: int) -> None:
    size = os.path.getsize(path)
    edges = [size * i // processes for i in range(processes + 1)]
    jobs = [(path, a, b) for a, b in itertools.pairwise(edges)]
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        table = merged(pool.map(part, jobs, chunksize=1))
    mean = pc.divide(table["temp_sum"], table["temp_count"])
    columns = [table["station"], table["temp_min"], mean, table["temp_max"], table["temp_count"]]
    pacsv.write_csv(pa.table(columns, names=["station", "coldest", "mean", "hottest", "readings"]), output)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
