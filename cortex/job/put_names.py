"""Names of what ``cortex put`` spreads over nodes: a folder below their data roots, and its parts.

    <root>/<name>/part-00003-of-00016.csv

A part's name says how many there are, so a reader sees when some are missing: what a lost node had, or what
a put that broke in its last moment left. Sorted by name, parts are in the file's order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

PUT_NAME: Final = r"\A[^\x00-\x1f\x7f/\\*?\[\]{}:._ -][^\x00-\x1f\x7f/\\*?\[\]{}:]{0,99}\Z"
"""Of the folder: one plain part of a path, which a glob takes as it stands. A pattern for messages."""
ENDING: Final = r"\A(\.[A-Za-z0-9]{1,16})?\Z"
"""Of the parts: what follows their numbers."""
PUT_NAME_CURE: Final = (
    "name the folder with --as: letters, digits, - and . are fine; up to 100 characters, no / and no *?[]{}:"
)
_NAME = re.compile(PUT_NAME)
_PART = re.compile(r"part-([0-9]{5,7})-of-([0-9]{5,7})(\.[A-Za-z0-9]{1,16})?")


def is_put_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def part_name(part: int, parts: int, ending: str) -> str:
    return f"part-{part:05d}-of-{parts:05d}{ending}"


def is_part_name(name: str) -> bool:
    return _PART.fullmatch(name) is not None


def lacking(names: Iterable[str], wanted: Callable[[str], bool]) -> str:
    """What keeps these names, of one folder, from being all the parts of one put that are `wanted`, in words;
    "" for nothing, or when none of them is a part's."""
    found: dict[int, dict[int, str]] = {}
    for name in names:
        match = _PART.fullmatch(name)
        if match is not None:
            found.setdefault(int(match[2]), {})[int(match[1])] = match[3] or ""
    if len(found) > 1 and all(max(endings) < parts for parts, endings in found.items()):
        return f"there are parts of several puts, of {' and of '.join(map(str, sorted(found)))} parts"
    for parts, endings in found.items():
        if max(endings) >= parts:
            return ""  # somebody else's, counted from 1
        ending = next(iter(endings.values()))
        absent = [number for number in range(parts) if number not in endings]
        absent = [number for number in absent if wanted(part_name(number, parts, ending))]
        if absent:
            said = f"{len(absent)} of its {parts} parts are on no node that is here"
            return f"{said}, such as number {absent[0]}"
    return ""
