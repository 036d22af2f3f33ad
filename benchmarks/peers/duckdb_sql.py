"""Arguments: SQL with {input}, input, output, threads, memory limit ("" for its default), spill folder."""

import sys

import duckdb

sql, path, output, threads, memory, spill = sys.argv[1:7]
settings = {"threads": int(threads), "temp_directory": spill, "preserve_insertion_order": False}
if memory:
    settings["memory_limit"] = memory
connection = duckdb.connect(config=settings)
query = sql.replace("{input}", f"'{path}'")
connection.execute(f"COPY ({query}) TO '{output}' (FORMAT csv, HEADER)")
