"""A result's rows on standard output: a table for a terminal, CSV for a pipe."""

from __future__ import annotations

import datetime as dt
import sys
from typing import TYPE_CHECKING, Any

from cortex.cli.terminal import writing_out
from cortex.result import display, is_pickled, python_values
from cortex.units import format_count

if TYPE_CHECKING:
    import pyarrow as pa

    from cortex.result import Result

_CELL_CHARS_MAX = 200  # of one value in a table: a long text would push the other columns away


def print_table(result: Result) -> None:
    """The first rows by key, and how many more there are."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows, more = result.first_rows()
    console = Console()
    cells = shown_cells(rows, result.columns, console.width)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for position, name in enumerate(result.columns):
        numbers = any(_is_number(row[position]) for row in rows)
        # Text is folded before a number is: one broken over two lines reads as two.
        table.add_column(
            Text(printable(name)), justify="right" if numbers else "left", overflow="fold", no_wrap=numbers
        )
    for row, texts in zip(rows, cells):
        table.add_row(*(Text(text, style="dim" if value is None else "") for text, value in zip(texts, row)))
    with writing_out():
        console.print(table)
        if more:
            print(f"and {format_count(more)} more; --output FOLDER writes them all")
        elif not rows:
            print("no rows")


def shown_cells(rows: list[tuple[Any, ...]], columns: tuple[str, ...], width_chars: int) -> list[list[str]]:
    """The values as texts; floats have six digits where a line of all their digits is too long."""
    whole = [[printable(display(value))[:_CELL_CHARS_MAX] for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *whole)]
    if sum(widths) + 3 * len(widths) <= width_chars:
        return whole
    return [
        [f"{value:.6g}" if type(value) is float else text for value, text in zip(row, texts)]
        for row, texts in zip(rows, whole)
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def printable(text: str) -> str:
    """Text without control characters: data must not move a terminal's cursor or colour it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def print_csv(result: Result) -> None:
    """All rows as CSV with a header line, streamed: the same text as in a file."""
    import pyarrow as pa

    from cortex.formats.text_writers import CsvFormat

    out = sys.stdout.buffer
    schema = result.schema
    if not schema.names:
        return
    pickled = {i for i, field in enumerate(schema) if is_pickled(field)}
    shown = pa.schema([pa.field(f.name, pa.string()) if i in pickled else f for i, f in enumerate(schema)])
    lines = CsvFormat(shown, ",")
    with writing_out():
        out.write(lines.header())
    for batch in result.to_batches():
        columns = list(batch.columns)
        for i in pickled:
            columns[i] = _texts(python_values(columns[i], schema.field(i)))
        encoded = lines.encode(pa.RecordBatch.from_arrays(columns, schema=shown))
        with writing_out():
            out.writelines(encoded)
    with writing_out():
        out.flush()


def _texts(values: list[Any]) -> pa.Array:
    import pyarrow as pa

    cells = [
        None if value is None else text_of(value).encode("utf-8", "backslashreplace") for value in values
    ]
    return pa.array(cells, pa.binary()).cast(pa.string())


def text_of(value: Any) -> str:
    """A Python value in CSV: nothing for None, JSON for tuples, lists, dicts and sets, else its text."""
    if value is None:
        return ""
    if isinstance(value, (tuple, list, dict, set, frozenset)):
        import msgspec

        try:
            return msgspec.json.encode(value, enc_hook=str, order="deterministic").decode()
        except (TypeError, ValueError, msgspec.MsgspecError):  # a dict with tuples as keys has no JSON
            return repr(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value.isoformat() if isinstance(value, dt.date) else display(value)
