"""The parts of a parsed expression: frozen nodes that compare by meaning, not by place.

Every node has `at`, its 0-based offset in the text (an operator's own place), and `depth`, the height
of the tree under it, which the parser bounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Literal:
    """`kind` is null, bool, int, float or string. Equal only to one written the same way: ``1`` is not
    ``1.0``, which Python would say it is."""

    kind: str
    value: Any
    text: str
    at: int = field(compare=False)
    depth: int = field(default=1, compare=False)


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    at: int = field(compare=False)
    depth: int = field(default=1, compare=False)


@dataclass(frozen=True, slots=True)
class Unary:
    """`op` is ``-``, ``+`` or ``not``."""

    op: str
    operand: Node
    at: int = field(compare=False)
    depth: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Binary:
    """`op` is an arithmetic or comparison operator, ``and`` or ``or``; `at` is the operator's place."""

    op: str
    left: Node
    right: Node
    at: int = field(compare=False)
    depth: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class In:
    operand: Node
    items: tuple[Literal, ...]
    negated: bool
    at: int = field(compare=False)
    depth: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class IsNull:
    operand: Node
    negated: bool
    at: int = field(compare=False)
    depth: int = field(compare=False)


@dataclass(frozen=True, slots=True)
class Call:
    function: str
    args: tuple[Node, ...]
    at: int = field(compare=False)
    depth: int = field(compare=False)


Node = Literal | Column | Unary | Binary | In | IsNull | Call


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression and the text that its nodes' `at` (0-based offsets) point into.

    Two are equal if they compute the same thing the same way, however they were spaced.
    """

    root: Node
    text: str = field(compare=False)


def columns_of(expression: Expression) -> tuple[str, ...]:
    """The columns an expression reads, each once, in the order they are written."""
    return tuple(dict.fromkeys(node.name for node in walk(expression.root) if isinstance(node, Column)))


def walk(node: Node) -> Iterator[Node]:
    """The node and all under it, left to right."""
    yield node
    for child in _children(node):
        yield from walk(child)


def _children(node: Node) -> tuple[Node, ...]:
    match node:
        case Binary():
            return node.left, node.right
        case Unary() | IsNull():
            return (node.operand,)
        case In():
            return node.operand, *node.items
        case Call():
            return node.args
        case _:
            return ()
