"""Arrow type names: what a user may write for a column's type, and how cortex writes a type down.

`arrow_type` reads a name and `type_name` writes one; ``arrow_type(type_name(t)) == t`` for every type
a column of a job can have (scalars, and structs and lists of them). A name is case-insensitive,
spaces in it do not matter, and short forms (``int``, ``str``, ``double``, ``date``, ``decimal(12,2)``)
stand for one canonical name. `type_class` says which operations a type takes part in.

Nothing here imports pyarrow before it is called: the command line must start without it.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Final, Literal

from cortex.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

TypeClass = Literal[
    "null", "bool", "integer", "float", "decimal", "string", "binary", "date", "timestamp", "time",
    "duration", "other",
]  # fmt: skip

# canonical name -> the pyarrow function that makes it
_PLAIN: Final[dict[str, str]] = {
    "null": "null",
    "bool": "bool_",
    "int8": "int8",
    "int16": "int16",
    "int32": "int32",
    "int64": "int64",
    "uint8": "uint8",
    "uint16": "uint16",
    "uint32": "uint32",
    "uint64": "uint64",
    "float16": "float16",
    "float32": "float32",
    "float64": "float64",
    "string": "string",
    "large_string": "large_string",
    "string_view": "string_view",
    "binary": "binary",
    "large_binary": "large_binary",
    "binary_view": "binary_view",
    "date32": "date32",
    "date64": "date64",
}

_ALIASES: Final[dict[str, str]] = {
    "str": "string",
    "text": "string",
    "utf8": "string",
    "large_utf8": "large_string",
    "bytes": "binary",
    "int": "int64",
    "integer": "int64",
    "bigint": "int64",
    "long": "int64",
    "uint": "uint64",
    "float": "float64",
    "double": "float64",
    "halffloat": "float16",
    "boolean": "bool",
    "date": "date32",
    "date32[day]": "date32",
    "date64[ms]": "date64",
    "timestamp": "timestamp[us]",
    "datetime": "timestamp[us]",
    "time": "time64[us]",
    "duration": "duration[us]",
}

_UNITS: Final = {"timestamp": "s ms us ns", "time32": "s ms", "time64": "us ns", "duration": "s ms us ns"}
_TEMPORAL = re.compile(
    r"(timestamp|time32|time64|duration)\[\s*(\w+)\s*(?:,\s*tz\s*=\s*([^\],]+?)\s*)?\]", re.I
)
_DECIMAL = re.compile(
    r"(decimal|numeric|decimal32|decimal64|decimal128|decimal256)\(\s*(\d+)\s*(?:,\s*(-?\d+)\s*)?\)", re.I
)
_OFFSET = re.compile(r"[+-]([01]\d|2[0-3]):[0-5]\d")
_FIXED = re.compile(r"fixed_size_binary\[(\d{1,9})\]", re.I)
_NESTED = re.compile(r"(struct|list)<(.*)>", re.I | re.S)
_FIELD_NAME = re.compile(r"\s*(?:`((?:[^`]|``)*)`|([^\W\d]\w*))\s*:(.*)", re.S)
_DIGITS_MAX: Final = {
    "decimal": 38,
    "numeric": 38,
    "decimal32": 9,
    "decimal64": 18,
    "decimal128": 38,
    "decimal256": 76,
}
_DEPTH_MAX: Final = 16

KNOWN_NAMES: Final[tuple[str, ...]] = (*_PLAIN, *_ALIASES, "timestamp[us, tz=UTC]", "decimal(12,2)")
"""For help texts and suggestions."""


def arrow_type(name: str) -> pa.DataType:
    """The Arrow type of a name. Raises UsageError, with the nearest name there is."""
    return _parse(name, name, 0)


def check_type(name: str) -> None:
    """Raise UsageError, as `arrow_type` does, unless `name` is a type.

    Common names do not import pyarrow, which takes 0.2 s that the command line does not have.
    """
    word = name.strip().lower()
    if _ALIASES.get(word, word) not in _PLAIN:
        arrow_type(name)


def type_name(arrow: pa.DataType) -> str:
    """The canonical name of an Arrow type.

    Never raises: a type that no job can use (a map, a dictionary) gets Arrow's own name for it, which
    `arrow_type` refuses when a job uses that column.
    """
    import pyarrow.types as is_

    if is_.is_float16(arrow) or is_.is_float32(arrow) or is_.is_float64(arrow):
        return f"float{arrow.bit_width}"
    if is_.is_date(arrow):
        return f"date{arrow.bit_width}"
    if is_.is_struct(arrow):
        return f"struct<{', '.join(f'{_field_name(f.name)}: {type_name(f.type)}' for f in arrow)}>"
    if is_.is_list(arrow):
        return f"list<{type_name(arrow.value_type)}>"
    return str(arrow)


def columns_line(column: str, name: str) -> str:
    """How a job file gives a column a type, for a cure: ``columns: {t: 'timestamp[us]'}``."""
    return f"columns: {{{_yaml_word(column)}: {_yaml_word(name)}}}"


def _yaml_word(text: str) -> str:
    """A YAML scalar that may stand inside braces, where brackets and commas end a plain one."""
    return text if re.fullmatch(r"[^\W\d]\w*", text) else "'" + text.replace("'", "''") + "'"


def type_class(arrow: pa.DataType) -> TypeClass:
    """Which kind of value a type holds: what expressions and aggregates decide on."""
    import pyarrow.types as is_

    tests: tuple[tuple[TypeClass, bool], ...] = (
        ("null", is_.is_null(arrow)),
        ("bool", is_.is_boolean(arrow)),
        ("integer", is_.is_integer(arrow)),
        ("float", is_.is_floating(arrow)),
        ("decimal", is_.is_decimal(arrow)),
        ("string", is_.is_string(arrow) or is_.is_large_string(arrow) or is_.is_string_view(arrow)),
        (
            "binary",
            is_.is_binary(arrow)
            or is_.is_large_binary(arrow)
            or is_.is_binary_view(arrow)
            or is_.is_fixed_size_binary(arrow),
        ),
        ("date", is_.is_date(arrow)),
        ("timestamp", is_.is_timestamp(arrow)),
        ("time", is_.is_time(arrow)),
        ("duration", is_.is_duration(arrow)),
    )
    return next((name for name, holds in tests if holds), "other")


def _parse(text: str, whole: str, depth: int) -> pa.DataType:
    import pyarrow as pa

    word = text.strip()
    low = word.lower()
    low = _ALIASES.get(low, low)
    if low in _PLAIN:
        return getattr(pa, _PLAIN[low])()
    if match := _TEMPORAL.fullmatch(word if "[" in word else low):
        return _temporal(match, whole)
    if match := _DECIMAL.fullmatch(word):
        return _decimal(match, whole)
    if (match := _FIXED.fullmatch(word)) and int(match[1]) > 0:
        return pa.binary(int(match[1]))
    if match := _NESTED.fullmatch(word):
        if depth >= _DEPTH_MAX:
            raise UsageError(f"type {whole!r} is nested more than {_DEPTH_MAX} deep")
        if match[1].lower() == "list":
            return pa.list_(_parse(match[2], whole, depth + 1))
        return pa.struct([_field(part, whole, depth + 1) for part in _split(match[2])])
    raise _unknown(word, whole)


def _temporal(match: re.Match[str], whole: str) -> pa.DataType:
    import pyarrow as pa

    kind, unit, zone = match[1].lower(), match[2], match[3]
    if unit not in _UNITS[kind].split():
        raise UsageError(f"type {whole!r}: {unit!r} is no unit of {kind}", cure=f"use one of: {_UNITS[kind]}")
    if zone is None:
        return getattr(pa, kind)(unit)
    if kind != "timestamp":
        raise UsageError(f"type {whole!r}: only a timestamp has a time zone", cure=f"write {kind}[{unit}]")
    if zone != "UTC" and not _OFFSET.fullmatch(zone):  # these need no time zone database
        _check_zone(zone, whole)
    return pa.timestamp(unit, zone)


def _check_zone(zone: str, whole: str) -> None:
    """Arrow takes any text for a zone, and says that it is none when it has a value to write."""
    import zoneinfo

    try:
        zoneinfo.ZoneInfo(zone)
    except (KeyError, ValueError, OSError) as error:  # no such name, no name of a file, or of a folder
        near = difflib.get_close_matches(zone, zoneinfo.available_timezones(), 1)
        raise UsageError(
            f"type {whole!r}: there is no time zone {zone!r}",
            cure=f"did you mean {near[0]}?"
            if near
            else "write UTC, Europe/Berlin or an offset such as +02:00",
        ) from error


def _decimal(match: re.Match[str], whole: str) -> pa.DataType:
    import pyarrow as pa

    kind, digits, scale = match[1].lower(), int(match[2]), int(match[3] or 0)
    if not 1 <= digits <= _DIGITS_MAX[kind]:
        raise UsageError(
            f"type {whole!r}: digits must be 1 to {_DIGITS_MAX[kind]}", cure="write decimal(12, 2)"
        )
    if abs(scale) > digits:
        raise UsageError(
            f"type {whole!r}: {scale} digits after the point do not fit in {digits}",
            cure="write the digits in all first, then those after the point, such as decimal(12, 2)",
        )
    make = "decimal128" if kind in ("decimal", "numeric") else kind
    return getattr(pa, make)(digits, scale)


def _field(text: str, whole: str, depth: int) -> pa.Field:
    import pyarrow as pa

    match = _FIELD_NAME.fullmatch(text)
    if match is None:
        raise UsageError(
            f"type {whole!r}: {text.strip()!r} is no field", cure="write struct<name: type, ...>"
        )
    name = match[2] if match[1] is None else match[1].replace("``", "`")
    return pa.field(name, _parse(match[3], whole, depth))


def _field_name(name: str) -> str:
    return name if re.fullmatch(r"[^\W\d]\w*", name) else "`" + name.replace("`", "``") + "`"


def _split(text: str) -> list[str]:
    """Split at commas outside brackets and backquotes."""
    parts, depth, quoted, start = [], 0, False, 0
    for at, char in enumerate(text):
        if char == "`":
            quoted = not quoted
        elif quoted:
            continue
        elif char in "<[(":
            depth += 1
        elif char in ">])":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]] if text.strip() else []


def struct_fields(name: str) -> list[tuple[str, str]] | None:
    """(field name as it is written, type name) of a struct's fields, of `type_name`; None of other types."""
    if not name.startswith("struct<"):
        return None
    fields = [_FIELD_NAME.fullmatch(part) for part in _split(name[len("struct<") : -1])]
    return [(match[0][: match.start(3) - 1].strip(), match[3].strip()) for match in fields if match]


def _unknown(word: str, whole: str) -> UsageError:
    near = difflib.get_close_matches(word.lower(), KNOWN_NAMES, 1, 0.6)
    cure = (
        f"did you mean {near[0]}?"
        if near
        else "such as string, int64, float64, bool, date, timestamp[us] or decimal(12,2)"
    )
    inside = "" if word == whole.strip() else f" (in {whole!r})"
    return UsageError(f"{word!r} is not a column type{inside}", cure=cure)
