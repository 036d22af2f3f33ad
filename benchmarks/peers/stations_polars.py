"""Arguments: input, output. Threads by POLARS_MAX_THREADS."""

import sys

import polars as pl

temp = pl.col("temp")
result = (
    pl.scan_csv(sys.argv[1], schema={"station": pl.String, "temp": pl.Float64})
    .group_by("station")
    .agg(coldest=temp.min(), mean=temp.mean(), hottest=temp.max(), readings=pl.len())
    .collect(engine="streaming")
)
result.write_csv(sys.argv[2])
