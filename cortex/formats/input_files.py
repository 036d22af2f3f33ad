"""From what the user names (files, folders, globs) to a list of input files, each with its format.

The order is that of the names given, sorted within a folder or glob; a file reached twice is read once.
Links to files and folders are followed. Below a folder names that begin with ``_`` or ``.`` are skipped
(``_SUCCESS``, ``.git``), as they are where ``*`` or ``**`` alone stands for them (``out/*``,
``out/**/*.csv``). A pattern that says more of the name takes what a shell would: ``*.py`` is
``_private.py`` as well.
"""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from cortex.errors import DataIncomplete, InputError
from cortex.job.data_names import DATA_PREFIX, is_data_name, refuse_data_names
from cortex.job.plan import ClientFile, ClientFiles, DataFiles, InputFile
from cortex.job.put_names import lacking
from cortex.job.spec import CsvDialect, InputSpec

_FORMAT_OF_ENDING: Final = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
GZIP: Final = "gzip"
GZIP_REASON: Final = "gzip can only be read from its beginning"
ESCAPE_REASON: Final = "with an escape character it can only be read from its beginning"


def format_of(path: str) -> tuple[str, str]:
    """(format, compression) by the file's ending; what is unknown is text."""
    stem, ending = os.path.splitext(path.lower())
    compression = GZIP if ending == ".gz" else ""
    if compression:
        ending = os.path.splitext(stem)[1]
    return _FORMAT_OF_ENDING.get(ending, "text"), compression


def find_files(
    spec: InputSpec, client_files: ClientFiles = (), data_files: DataFiles = ()
) -> Iterator[InputFile]:
    """The input files in order, described. Paths behind which the client has files mean those, whatever this
    machine has; data names mean `data_files`, what nodes have; the others are looked for here. InputError
    for one behind which there is nothing, UsageError for a data name where there are no nodes, DataIncomplete
    for one of a file that was put and is not whole."""
    seen: set[str] = set()
    clients, nodes = itertools.count(), itertools.count(sum(len(found or ()) for found in client_files))
    data = iter(data_files)
    for path, theirs in itertools.zip_longest(spec.paths, client_files[: len(spec.paths)]):
        is_data = is_data_name(path)
        if is_data:
            theirs = next(data, None)
            if theirs is None:
                refuse_data_names([path])
            _check_parts(path, theirs or ())
        for file in theirs or ():
            number = next(nodes if is_data else clients)
            if file.path not in seen:
                yield _described(len(seen), file, 0, spec, number)
                seen.add(file.path)
        for name in _files_behind(path, bool(client_files)) if theirs is None else ():
            real = os.path.realpath(name)
            if real not in seen:
                yield describe_file(len(seen), name, spec)
                seen.add(real)


def _check_parts(name: str, found: Sequence[ClientFile]) -> None:
    """DataIncomplete where a data name stands for parts of a file that was put, and some of those that it
    stands for are not there."""
    folders: dict[str, list[str]] = {}
    for file in found:
        folder, _, base = file.path.rpartition("/")
        folders.setdefault(folder, []).append(base)
    pattern = os.path.basename(name.removeprefix(DATA_PREFIX))

    def wanted(base: str) -> bool:
        return not glob.has_magic(pattern) or pattern == "**" or fnmatch.fnmatchcase(base, pattern)

    for folder, names in folders.items():
        problem = "" if names == [pattern] else lacking(names, wanted)
        if problem:
            raise DataIncomplete(
                f"{folder} is not whole: {problem}",
                details={"input": name},
                cure="cortex status shows which nodes are here; put the file again: cortex put --overwrite",
            )


def files_at(path: str) -> list[str]:
    """The files that one name stands for, in order; none if there are none. InputError for a folder that
    cannot be read, and for a file whose name is not UTF-8."""
    names = list(_files_of(path))
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the file's name is not UTF-8: {os.fsencode(name)!r}", cure="rename the file"
            ) from error
    return names


def _files_behind(path: str, has_client: bool) -> list[str]:
    names = files_at(path)
    if names:
        return names
    where = "on the client's machine, then on a node" if has_client else ""
    if not os.path.isdir(path) and not glob.has_magic(path):
        raise InputError(
            f"input does not exist: {path}",
            details={"input": path, "looked for": where},
            cure="check the path; relative ones start at the current folder"
            + (", files below nodes' data roots are named data:PATH" if has_client else ""),
        )
    kind = "folder has no input files" if os.path.isdir(path) else "pattern matches no input file"
    raise InputError(
        f"{kind}: {path}",
        details={"input": path, "looked for": where},
        cure="names that begin with _ or . are skipped below folders and patterns",
    )


def _files_of(path: str) -> Iterator[str]:
    if os.path.isdir(path):
        yield from _walk(path)
    elif os.path.lexists(path):
        yield path
    elif glob.has_magic(path):
        pattern = path.split(os.sep)
        for name in sorted(glob.glob(path, recursive=True)):
            if not _meant(pattern, name.split(os.sep)):
                continue
            if os.path.isdir(name):
                # With ** every file below is matched by itself.
                if "**" not in path:
                    yield from _walk(name)
            else:
                yield name


def _meant(pattern: Sequence[str], names: Sequence[str]) -> bool:
    """Whether `names` match without a hidden one where ``*`` or ``**`` alone stands."""
    if not pattern or not names:
        return not names and all(part == "**" for part in pattern)
    part, name = pattern[0], names[0]
    shown = not name.startswith(("_", "."))
    if part == "**":
        return _meant(pattern[1:], names) or (shown and _meant(pattern, names[1:]))
    matches = shown if part == "*" else fnmatch.fnmatchcase(name, part)
    return matches and _meant(pattern[1:], names[1:])


def _walk(folder: str) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise InputError(
            f"folder cannot be read: {error.strerror}", details={"folder": error.filename}
        ) from error

    names = []
    seen = {os.path.realpath(folder)}  # links are followed, and may lead back
    for parent, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        found = sorted(name for name in folders if not name.startswith(("_", ".")))
        folders.clear()
        for name in found:
            real = os.path.realpath(os.path.join(parent, name))
            if real not in seen:
                seen.add(real)
                folders.append(name)
        names += [os.path.join(parent, name) for name in files if not name.startswith(("_", "."))]
    return iter(sorted(names))


def dialect_of(spec: InputSpec, format_: str) -> CsvDialect:
    """The dialect of a CSV or TSV file, checked. Here it gets a delimiter if none was said."""
    dialect = spec.dialect or CsvDialect(delimiter="")
    delimiter = dialect.delimiter or ("\t" if format_ == "tsv" else ",")
    escape = "" if dialect.escape == dialect.quote else dialect.escape
    for what, text in (("delimiter", delimiter), ("quote", dialect.quote), ("escape", escape)):
        if text and (len(text) != 1 or not text.isascii() or text in "\r\n\0"):
            raise InputError(
                f"{what} {text!r} is not one ASCII character", cure="name one character, such as ',' or ';'"
            )
    if delimiter in (dialect.quote, escape):
        raise InputError(
            f"{delimiter!r} is both delimiter and quote or escape", cure="name two different characters"
        )
    return CsvDialect(delimiter, dialect.quote, escape, dialect.header, dialect.null_values)


def look_at(path: str) -> os.stat_result:
    """InputError unless it is a regular file."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"input file cannot be read: {error.strerror}", details={"file": path}) from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(
            "input is no regular file: its bytes can be read only once",
            details={"file": path},
            cure="save it as a file first",
        )
    return status


def describe_file(index: int, path: str, spec: InputSpec) -> InputFile:
    """A file's identity and format; columns and `data_start` are found later."""
    status = look_at(path)
    found = ClientFile(path, status.st_size, status.st_mtime_ns)
    return _described(index, found, status.st_ino, spec, -1)


def _described(index: int, found: ClientFile, inode: int, spec: InputSpec, client_file: int) -> InputFile:
    path = found.path
    format_, compression = format_of(path)
    format_ = spec.format or format_
    if format_ in ("parquet", "arrow"):
        compression = ""
    dialect = dialect_of(spec, format_) if format_ in ("csv", "tsv") else None
    unsplittable = ""
    if compression:
        unsplittable = GZIP_REASON
    elif dialect is not None and dialect.escape:
        unsplittable = ESCAPE_REASON
    return InputFile(
        index=index,
        path=path,
        format=format_,
        size_bytes=found.size_bytes,
        modified_ns=found.modified_ns,
        inode=inode,
        dialect=dialect,
        compression=compression,
        encoding=spec.encoding,
        unsplittable=unsplittable,
        client_file=client_file,
        fingerprint=found.fingerprint,
    )
