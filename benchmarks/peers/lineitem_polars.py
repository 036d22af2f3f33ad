"""Arguments: input, output. Threads by POLARS_MAX_THREADS."""

import sys

import polars as pl

(
    pl.scan_csv(sys.argv[1])
    .group_by("l_orderkey")
    .agg(quantity=pl.col("l_quantity").sum(), lines=pl.len())
    .sink_csv(sys.argv[2], engine="streaming")
)
