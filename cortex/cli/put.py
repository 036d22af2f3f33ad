"""``cortex put``: a file spread over the nodes' data roots."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from cortex.cli.connection import connected, of_cluster
from cortex.cli.options import HELP, SIZE, as_json, input_format
from cortex.cli.terminal import ForShow, guarded, print_json
from cortex.errors import EXIT_DONE, UsageError
from cortex.job.put_names import PUT_NAME_CURE, is_put_name
from cortex.job.spec import CsvDialect, InputSpec
from cortex.limits import PUT_COPIES_MAX
from cortex.units import counted, format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from cortex.client.put_session import PutReport


@click.command(name="put", context_settings=HELP)
@click.argument("path", metavar="FILE")
@click.option("--as", "name", metavar="NAME", help="Put it as data:NAME/* (default: the file's name).")
@click.option(
    "--part-size",
    "part_bytes",
    type=SIZE,
    help="Bytes of a part at most (default: a split's, 64MB, less below 2GB).",
)
@input_format
@click.option("--delimiter", metavar="CHAR", help="Of a CSV file (default: comma, for .tsv tab).")
@click.option("--quote", metavar="CHAR", help="Of a CSV file (default '\"'; '' for none).")
@click.option("--no-header", is_flag=True, help="The CSV file's first line is a record.")
@click.option("--overwrite", is_flag=True, help="Replace what was put as NAME before.")
@click.option(
    "--copies",
    type=click.IntRange(1, PUT_COPIES_MAX),
    default=1,
    show_default=True,
    metavar="N",
    help="Nodes that get each part.",
)
@of_cluster
@as_json
def put(
    path: str,
    name: str | None,
    part_bytes: int | None,
    input_format: str | None,
    delimiter: str | None,
    quote: str | None,
    no_header: bool,
    overwrite: bool,
    copies: int,
    home: str | None,
    server: str | None,
    as_json: bool,
) -> int:
    """Spread a file over the nodes' data roots, so that jobs read it where it lies: data:NAME/*.

    It is cut at record ends into parts that are files of their own: a CSV part begins with the header, a
    Parquet part has whole row groups, gzip is decompressed. Each is checked by its SHA-256 and on the disk
    before any has its name. For placing data near the work: keep the file itself where it is safe, for a part
    is lost with its node (unless there are --copies).

    \b
    Examples:
      cortex put big.csv --server head:8786
      cortex put events.parquet --as events-2024 --copies 2
      cortex mapreduce job.yaml --input 'data:big/*' --server head:8786
    """

    def command() -> int:
        from cortex.client.put_session import put_file
        from cortex.formats.input_files import look_at
        from cortex.formats.planning import default_split_bytes

        file = os.path.abspath(path)
        called = name if name is not None else _stem(file)
        if not is_put_name(called):
            raise UsageError(f"{called!r} cannot be the name of data", cure=PUT_NAME_CURE)
        size_bytes = look_at(file).st_size
        spec = InputSpec((file,), input_format or "", dialect=_dialect(delimiter, quote, no_header))
        with connected(home, server) as connection, _progress(size_bytes) as show:
            report = put_file(
                connection,
                file,
                spec,
                called,
                part_bytes or default_split_bytes(size_bytes),
                overwrite=overwrite,
                copies=copies,
                on_progress=show,
            )
        if as_json:
            print_json(_plain(report))
        else:
            print("\n".join(_lines(report)))
        return EXIT_DONE

    return guarded(command, as_json)


def _stem(file: str) -> str:
    base = os.path.basename(file)
    return os.path.splitext(base.removesuffix(".gz"))[0]


def _dialect(delimiter: str | None, quote: str | None, no_header: bool) -> CsvDialect | None:
    if delimiter is None and quote is None and not no_header:
        return None
    return CsvDialect(delimiter or "", '"' if quote is None else quote, header=not no_header)


@contextlib.contextmanager
def _progress(size_bytes: int) -> Iterator[Callable[[int, int], None]]:
    """One line on a terminal, written again; nothing elsewhere."""
    stream = ForShow(sys.stderr)
    shown = sys.stderr.isatty()

    def show(parts: int, kept_bytes: int) -> None:
        if shown:
            of = f" of {format_bytes(size_bytes)}" if kept_bytes <= size_bytes else ""
            stream.write(f"\r\x1b[K{counted(parts, 'part')}, {format_bytes(kept_bytes)}{of}")
            stream.flush()

    try:
        yield show
    finally:
        if shown:
            stream.write("\r\x1b[K")
            stream.flush()


def _lines(report: PutReport) -> list[str]:
    head = f"data:{report.name}/*: {counted(report.parts, 'part')}, {format_bytes(report.size_bytes)}"
    nodes = [
        f"  {node}: {counted(parts, 'part')}, {format_bytes(size)}"
        for node, (parts, size) in report.nodes.items()
    ]
    return [head, *nodes]


def _plain(report: PutReport) -> dict[str, object]:
    return {
        "name": f"data:{report.name}/*",
        "parts": report.parts,
        "size_bytes": report.size_bytes,
        "nodes": [
            {"node": node, "parts": parts, "size_bytes": size} for node, (parts, size) in report.nodes.items()
        ],
    }
