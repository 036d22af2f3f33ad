"""Where the arguments of `cortex compute` come from: each source is a description that is read again whenever
it is iterated, one entry at a time, never all of it in memory.

What an entry is depends on the source's `form`: ``one`` x for f(x), ``star`` xs for f(*xs), ``full``
(args, kwargs) for f(*args, **kwargs). `count` is how many there are, None where it would take long to know;
`check` looks at what can be wrong before the first call. What is wrong in a file raises InputError, with its
line.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import translate
from math import prod
from typing import IO, Any, Final, Literal, Protocol

from cortex.errors import InputError
from cortex.limits import (
    ARGUMENT_FILES_COUNTED_MAX,
    ARGUMENTS_COUNTED_BYTES,
    LINE_TEXT_CHARS_MAX,
    RECORD_BYTES_MAX,
)
from cortex.units import counted, format_bytes, format_count

EntryForm = Literal["one", "star", "full"]


class ArgumentSource(Protocol):
    @property
    def form(self) -> EntryForm: ...
    @property
    def text(self) -> str:
        """For people: ``range 0 to 100 by 5``."""

    def count(self) -> int | None: ...
    def check(self) -> None: ...
    def __iter__(self) -> Iterator[Any]: ...


def as_full(value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A list as positional arguments, a mapping as keyword arguments. Raises TypeError for anything else."""
    if isinstance(value, list):
        return tuple(value), {}
    if isinstance(value, dict):
        return (), value
    raise TypeError("neither a list nor a mapping")


@dataclass(frozen=True, slots=True)
class ListArguments:
    """Values that stand in the file. With `spread` each is a list or a mapping (checked before)."""

    values: tuple[Any, ...]
    spread: bool = False

    @property
    def form(self) -> EntryForm:
        return "full" if self.spread else "one"

    @property
    def text(self) -> str:
        return "a list"

    def count(self) -> int:
        return len(self.values)

    def check(self) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return map(as_full, self.values) if self.spread else iter(self.values)


@dataclass(frozen=True, slots=True)
class RangeArguments:
    numbers: range

    @property
    def form(self) -> EntryForm:
        return "one"

    @property
    def text(self) -> str:
        step = f" by {self.numbers.step}" if self.numbers.step != 1 else ""
        return f"range {self.numbers.start} to {self.numbers.stop}{step}"

    def count(self) -> int:
        return range_length(self.numbers)

    def check(self) -> None:
        pass

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)


def range_length(numbers: range) -> int:
    """As `len`, which takes no range longer than a machine word."""
    step = numbers.step
    return max(0, -((numbers.start - numbers.stop) // step))


@dataclass(frozen=True, slots=True)
class ProductArguments:
    """Every combination, the last one varying fastest. With `names` they are keyword arguments."""

    pools: tuple[Sequence[Any], ...]
    names: tuple[str, ...] = ()

    @property
    def form(self) -> EntryForm:
        return "full" if self.names else "star"

    @property
    def text(self) -> str:
        sizes = [format_count(size) for size in self._sizes()]
        if self.names:
            sizes = [f"{name} ({size})" for name, size in zip(self.names, sizes)]
        return "product of " + " x ".join(sizes)

    def _sizes(self) -> list[int]:
        return [range_length(pool) if isinstance(pool, range) else len(pool) for pool in self.pools]

    def count(self) -> int:
        return prod(self._sizes())

    def check(self) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        # itertools.product would copy every pool, a long range too
        combinations = _combinations(self.pools)
        if not self.names:
            return combinations
        return (((), dict(zip(self.names, values))) for values in combinations)


def _combinations(pools: Sequence[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    if not pools:
        yield ()
        return
    *firsts, last = pools
    for head in _combinations(firsts):
        for value in last:
            yield (*head, value)


@dataclass(frozen=True, slots=True)
class LinesArguments:
    """A file with one JSON value a line; lines of white space alone are none."""

    path: str
    spread: bool = False

    @property
    def form(self) -> EntryForm:
        return "full" if self.spread else "one"

    @property
    def text(self) -> str:
        return f"lines of {self.path}"

    def count(self) -> int | None:
        with _opened(self.path) as file:
            if _is_long(file):
                return None
            return sum(1 for line in file if line.strip())

    def check(self) -> None:
        _opened(self.path).close()

    def __iter__(self) -> Iterator[Any]:
        with _opened(self.path) as file:
            number = 0
            while line := file.readline(RECORD_BYTES_MAX + 1):
                number += 1
                if len(line) > RECORD_BYTES_MAX:
                    raise InputError(
                        f"a line has more than {format_bytes(RECORD_BYTES_MAX)}",
                        cure="one JSON value a line",
                        details={"file": self.path, "line": number},
                    )
                if line.strip():
                    yield self._value(line, number)

    def _value(self, line: bytes, number: int) -> Any:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            cure = "each line is one JSON value; a text is in double quotes"
            raise self._wrong(f"a line is no JSON: {error}", line, number, cure) from error
        if not self.spread:
            return value
        try:
            return as_full(value)
        except TypeError:
            cure = "with star, each line is a list of arguments or an object of named ones"
            raise self._wrong("a line is neither a list nor an object", line, number, cure) from None

    def _wrong(self, message: str, line: bytes, number: int, cure: str) -> InputError:
        text = line.decode("utf-8", "replace").strip()[:LINE_TEXT_CHARS_MAX]
        return InputError(message, cure=cure, details={"file": self.path, "line": number, "text": text})


_TRUE: Final = frozenset(("true", "1", "yes"))
_FALSE: Final = frozenset(("false", "0", "no"))


def _bool(text: str) -> bool:
    word = text.strip().lower()
    if word not in _TRUE and word not in _FALSE:
        raise ValueError(f"{text!r} is neither true nor false")
    return word in _TRUE


COLUMN_TYPES: Final[dict[str, Callable[[str], Any]]] = {
    "text": str,
    "int": int,
    "float": float,
    "bool": _bool,
    "json": json.loads,
}


@dataclass(frozen=True, slots=True)
class CsvArguments:
    """A row's columns as keyword arguments, named by the header; without `spread` the row as one dict.

    Text, but for the columns in `types`, where an empty field is None.
    """

    path: str
    types: tuple[tuple[str, str], ...] = ()
    delimiter: str = ","
    spread: bool = True

    @property
    def form(self) -> EntryForm:
        return "full" if self.spread else "one"

    @property
    def text(self) -> str:
        return f"rows of {self.path}"

    def count(self) -> int | None:
        with self._open() as file:
            return None if _is_long(file) else sum(1 for _ in self._rows(file))

    def check(self) -> None:
        with self._open() as file:
            self._header(self._reader(file))

    def __iter__(self) -> Iterator[Any]:
        with self._open() as file:
            for row in self._rows(file):
                yield ((), row) if self.spread else row

    def _open(self) -> IO[str]:
        _opened(self.path).close()
        return open(self.path, encoding="utf-8-sig", newline="")

    def _reader(self, file: IO[str]) -> Any:
        csv.field_size_limit(RECORD_BYTES_MAX)  # of the process: its own default is 128 KB
        return csv.reader(file, delimiter=self.delimiter, strict=True)

    def _header(self, reader: Any) -> list[str]:
        header = self._next(reader)
        if header is None:
            raise InputError(f"{self.path} has no header", cure="its first line names the columns")
        twice = {name for name in header if header.count(name) > 1 or not name}
        if twice:
            raise InputError(
                f"the header names {sorted(twice)[0]!r} {'twice' if sorted(twice)[0] else 'a column'}",
                cure="each column has a name of its own",
                details={"file": self.path, "line": 1},
            )
        unknown = [name for name, _ in self.types if name not in header]
        if unknown:
            raise InputError(
                f"there is no column {unknown[0]!r}, which `types` names",
                cure=f"columns are: {', '.join(header)}",
                details={"file": self.path},
            )
        return header

    def _rows(self, file: IO[str]) -> Iterator[dict[str, Any]]:
        reader = self._reader(file)
        header = self._header(reader)
        typed = [(header.index(name), name, kind, COLUMN_TYPES[kind]) for name, kind in self.types]
        while (fields := self._next(reader)) is not None:
            if not fields:  # an empty line
                continue
            if len(fields) != len(header):
                raise self._wrong(
                    reader,
                    f"a row has {counted(len(fields), 'field')}, the header {len(header)}",
                    "quote fields with commas or line ends in them",
                )
            row: dict[str, Any] = dict(zip(header, fields))
            for place, name, kind, parse in typed:
                try:
                    row[name] = parse(fields[place]) if fields[place] else None
                except ValueError as error:
                    wrong = f"column {name!r} is {fields[place][:LINE_TEXT_CHARS_MAX]!r}, which is no {kind}"
                    raise self._wrong(reader, wrong, "correct it, or leave the column text") from error
            yield row

    def _next(self, reader: Any) -> list[str] | None:
        try:
            return next(reader, None)
        except (csv.Error, UnicodeDecodeError) as error:
            raise self._wrong(reader, f"a row cannot be read: {error}", "save it as CSV in UTF-8") from error

    def _wrong(self, reader: Any, message: str, cure: str) -> InputError:
        return InputError(message, cure=cure, details={"file": self.path, "line": reader.line_num})


@dataclass(frozen=True, slots=True)
class FilesArguments:
    """The paths of files, absolute, in the order of their names in each folder."""

    patterns: tuple[str, ...]

    @property
    def form(self) -> EntryForm:
        return "one"

    @property
    def text(self) -> str:
        return "files " + ", ".join(self.patterns)

    def count(self) -> int | None:
        found = 0
        for _ in self:
            found += 1
            if found > ARGUMENT_FILES_COUNTED_MAX:
                return None
        return found

    def check(self) -> None:
        for pattern in self.patterns:
            if next(expand(pattern), None) is None:
                raise InputError(
                    f"{pattern} is no file, and matches none",
                    cure="write a file or a glob such as photos/**/*.jpg, relative to the job file",
                )

    def __iter__(self) -> Iterator[str]:
        for pattern in self.patterns:
            yield from expand(pattern)


_MAGIC: Final = re.compile(r"[*?\[]")


def expand(pattern: str) -> Iterator[str]:
    """Files that an absolute glob matches, folder by folder, each in order. ``**``: folders of any depth;
    links to folders are not followed there. A name that begins with a dot is matched by a part that does."""
    head, *parts = pattern.split(os.sep)
    if parts and parts[-1] == "**":
        parts.append("*")
    return _expand(head + os.sep, parts)


def _expand(folder: str, parts: Sequence[str]) -> Iterator[str]:
    part, rest = parts[0], parts[1:]
    if not _MAGIC.search(part):
        path = os.path.join(folder, part)
        if rest:
            yield from _expand(path, rest)
        elif os.path.isfile(path):
            yield path
        return
    deep = part == "**"
    if deep:
        yield from _expand(folder, rest)
    matches = re.compile("(?!\\.).*" if deep else translate(part)).match
    for entry in _entries(folder):
        if not matches(entry.name) or (entry.name.startswith(".") and not part.startswith(".")):
            continue
        if deep:
            if entry.is_dir(follow_symlinks=False):
                yield from _expand(entry.path, parts)
        elif not rest:
            if entry.is_file():
                yield entry.path
        elif entry.is_dir():
            yield from _expand(entry.path, rest)


def _entries(folder: str) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        raise InputError(
            f"{folder} cannot be read: {error.strerror}", cure="check its permissions"
        ) from error


def _opened(path: str) -> IO[bytes]:
    try:
        return open(path, "rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", cure="check the path") from error


def _is_long(file: IO[Any]) -> bool:
    return os.fstat(file.fileno()).st_size > ARGUMENTS_COUNTED_BYTES
