"""Values in a YAML file as plain Python values: what a call is given as its argument.

A value without quotes is what it is in JSON (a number, true, false, null), else text: ``no``, ``1.10.2`` and
``2024-01-01`` are text. What YAML would take for a number or a bool and JSON would not (``0x10``, ``1_000``,
``.5``, ``yes``) is refused: nobody can tell which was meant. Quoted values are always text.
"""

from __future__ import annotations

import re
from math import isfinite
from typing import Any, Final

import yaml

from cortex.job.yaml_nodes import Document

_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_DIGITS_MAX: Final = 4000  # Python reads no longer ints
_WORDS: Final[dict[str, Any]] = {"true": True, "false": False, "null": None}
_DOUBTFUL: Final = {
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:bool": "a bool",
    "tag:yaml.org,2002:null": "nothing",
}
_CURES: Final = {
    "a number": "write it as JSON does, such as 0.5 or 1000, or in quotes for a text",
    "a bool": "write true or false, or put it in quotes for a text",
    "nothing": "write null, or '' for an empty text",
}


def plain_value(document: Document, node: yaml.Node) -> Any:
    """The value; what cannot be read is noted in the document, and None stands for it."""
    if isinstance(node, yaml.SequenceNode):
        return [plain_value(document, item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return _mapping(document, node)
    return _scalar(document, node)


def _mapping(document: Document, node: yaml.MappingNode) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            document.note_at(key.start_mark, "a key is a text", "write name: value")
        elif key.value in found:
            document.note_at(key.start_mark, f"`{key.value}` is here twice", "keep one")
        else:
            found[key.value] = plain_value(document, value)
    return found


def _scalar(document: Document, node: yaml.Node) -> Any:
    text = str(node.value)
    if getattr(node, "style", None) is not None:
        return text
    if text in _WORDS:
        return _WORDS[text]
    number = _NUMBER.fullmatch(text)
    if number:
        value = float(text) if number[1] or number[2] or len(text) > _DIGITS_MAX else int(text)
        if not isfinite(value):
            document.note_at(node.start_mark, "a number that large is no number here", "put it in quotes")
            return None
        return value
    doubtful = _DOUBTFUL.get(node.tag)
    if doubtful:
        shown = repr(text) if text else "an empty value"
        document.note_at(node.start_mark, f"{shown} may be {doubtful} or a text", _CURES[doubtful])
        return None
    return text
