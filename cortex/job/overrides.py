"""Options given beside a job (on the command line, or to a job object) and what they replace in it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import msgspec

from cortex.errors import UsageError
from cortex.job.data_names import DATA_PREFIX, below_roots, is_data_name
from cortex.job.spec import INPUT_FORMATS, OUTPUT_FORMATS, CsvDialect, JobSpec
from cortex.limits import CALL_RETRIES_MAX, CALL_S_MAX, PARTITIONS_MAX, PRIORITY_MAX, PRIORITY_MIN
from cortex.units import format_seconds, parse_seconds


@dataclass(frozen=True, slots=True)
class Overrides:
    """None (or no `inputs`): the job's own word stands. Paths are relative to the current directory."""

    inputs: tuple[str, ...] = ()
    input_format: str | None = None
    output: str | None = None
    output_format: str | None = None
    output_on: str | None = None
    overwrite: bool | None = None
    memory_bytes: int | None = None
    slots: int | None = None
    reducers: int | None = None
    """-1: auto."""
    split_bytes: int | None = None
    priority: int | None = None
    fingerprint: str | None = None


def apply_overrides(spec: JobSpec, overrides: Overrides, cwd: str | None = None) -> JobSpec:
    """The spec with the options in place; raises UsageError for a format or path that cannot be."""
    folder = current_folder() if cwd is None else cwd
    given = overrides
    if given.input_format and given.input_format not in INPUT_FORMATS:
        raise UsageError(
            f"there is no input format {given.input_format!r}", cure=f"one of {', '.join(INPUT_FORMATS)}"
        )
    if given.output_format and given.output_format not in OUTPUT_FORMATS:
        raise UsageError(
            f"there is no output format {given.output_format!r}", cure=f"one of {', '.join(OUTPUT_FORMATS)}"
        )
    if given.reducers == 0 and spec.reduce_form == "aggregate":
        raise UsageError("0 reducers is a map-only job, but the job aggregates", cure="leave --reducers out")
    paths = tuple(input_path(p, folder) for p in given.inputs) or spec.input.paths
    text_format = spec.input.format if given.input_format is None else given.input_format
    changes = {
        "memory_bytes": given.memory_bytes,
        "slots": given.slots,
        "reducers": given.reducers,
        "split_bytes": given.split_bytes,
    }
    output = {
        "path": None if given.output is None else absolute_path(given.output, folder),
        "format": given.output_format,
        "at": given.output_on,
        "overwrite": given.overwrite,
    }
    return msgspec.structs.replace(
        spec,
        priority=spec.priority if given.priority is None else given.priority,
        input=msgspec.structs.replace(
            spec.input,
            paths=paths,
            format=text_format,
            fingerprint=given.fingerprint or spec.input.fingerprint,
        ),
        output=msgspec.structs.replace(spec.output, **{k: v for k, v in output.items() if v is not None}),
        resources=msgspec.structs.replace(
            spec.resources, **{k: v for k, v in changes.items() if v is not None}
        ),
    )


def absolute_path(path: str, folder: str) -> str:
    """A path, folder or glob, made absolute. Raises UsageError for what is no local path."""
    if not path:
        raise UsageError("a path is empty", cure="write a file, folder or glob")
    if "\0" in path:
        raise UsageError(f"{path!r} is not a path: it has a zero byte")
    scheme, found, _ = path.partition("://")
    if found and scheme.isalnum():
        raise UsageError(
            f"{path!r} is not on this machine", cure="copy it here first, then give the file's path"
        )
    return utf8_path(os.path.normpath(os.path.join(folder, os.path.expanduser(path))))


def input_path(path: str, folder: str) -> str:
    """An input of a job: the name of files of the nodes (``data:``), or as `absolute_path`."""
    if not is_data_name(path):
        return absolute_path(path, folder)
    if path == DATA_PREFIX:
        raise UsageError(
            "data: names no files",
            cure="write what to read below the nodes' data roots: data:logs/*.csv, or data:. for all",
        )
    return utf8_path(DATA_PREFIX + below_roots(path), "the name")


def utf8_path(path: str, what: str = "the path", cure: str = "rename the file or folder") -> str:
    """The path, if messages between processes, which are UTF-8, can name it. Raises UsageError."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} is not UTF-8: {os.fsencode(path)!r}", cure=cure) from None
    return path


def current_folder() -> str:
    """Where relative paths start. Raises UsageError when it has been removed."""
    try:
        return os.getcwd()
    except FileNotFoundError as error:
        raise UsageError("the current folder does not exist any more", cure="cd to one that does") from error


def parse_reducers(text: str | int, what: str = "reducers") -> int:
    """``auto`` -> -1; a count up to `limits.PARTITIONS_MAX`."""
    if not isinstance(text, bool):
        word = str(text).strip()
        if word.lower() == "auto":
            return -1
        if word.isascii() and word.isdigit() and len(word) < 10 and int(word) <= PARTITIONS_MAX:
            return int(word)
    raise UsageError(
        f"{what}: {text!r} is not a number of reducers",
        cure=f"write auto or a number from 0 (map only) to {PARTITIONS_MAX}",
    )


def parse_priority(text: str | int, what: str = "priority") -> int:
    """PRIORITY_MIN to PRIORITY_MAX."""
    word = "" if isinstance(text, bool) else str(text).strip()
    if word.removeprefix("-").removeprefix("+").isdigit() and len(word) < 6:
        priority = int(word)
        if PRIORITY_MIN <= priority <= PRIORITY_MAX:
            return priority
    raise UsageError(
        f"{what}: {text!r} is not a priority",
        cure=f"write a number from {PRIORITY_MIN} (last) to {PRIORITY_MAX} (first); without it is 0",
    )


def parse_slots(text: str | int, what: str = "slots") -> int:
    """Executors at once: 1 to 1024."""
    word = "" if isinstance(text, bool) else str(text).strip()
    if word.isascii() and word.isdigit() and len(word) < 6 and 1 <= int(word) <= 1024:
        return int(word)
    raise UsageError(f"{what}: {text!r} is not a number of slots", cure="write a number from 1 to 1024")


def parse_timeout(text: str | float, what: str = "timeout") -> float:
    """Seconds: ``30``, ``1.5`` or ``30s``, ``2m``. Raises UsageError for anything else, and for 0."""
    word = str(text).strip()
    seconds = float(word) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", word) else parse_seconds(word, what)
    if not 0 < seconds <= CALL_S_MAX:
        raise UsageError(
            f"{what}: a call cannot be given {text!r}",
            cure=f"write seconds, more than 0 and at most {format_seconds(CALL_S_MAX)}, such as 30s",
        )
    return seconds


def parse_retries(text: str | int, what: str = "retries") -> int:
    word = "" if isinstance(text, bool) else str(text).strip()
    if word.isascii() and word.isdigit() and len(word) < 6 and int(word) <= CALL_RETRIES_MAX:
        return int(word)
    raise UsageError(
        f"{what}: {text!r} is not a number of retries", cure=f"write a number from 0 to {CALL_RETRIES_MAX}"
    )


def dialect_problems(dialect: CsvDialect) -> list[tuple[str, str, str]]:
    """(option, what is wrong, cure) for each option that a CSV reader cannot follow."""
    problems = []
    for option, char in (
        ("delimiter", dialect.delimiter),
        ("quote", dialect.quote),
        ("escape", dialect.escape),
    ):
        if char and (len(char) != 1 or not char.isascii() or char in "\r\n\0"):
            problems.append(
                (
                    option,
                    f"{char!r} is not one ASCII character",
                    f"write one character, such as {_USUAL[option]}",
                )
            )
    if dialect.quote and dialect.quote == dialect.delimiter:
        problems.append(
            ("quote", f"{dialect.quote!r} is also the delimiter", "write '' for files without quotes")
        )
    if dialect.escape and dialect.escape in (dialect.delimiter, dialect.quote):
        problems.append(
            (
                "escape",
                f"{dialect.escape!r} is also the delimiter or quote",
                "a doubled quote needs no escape: leave it out",
            )
        )
    return problems


_USUAL = {"delimiter": '";" or "\\t"', "quote": "'\"'", "escape": "'\\'"}
