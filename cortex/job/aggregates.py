"""Aggregate calls: ``mean(temp * 9 / 5 + 32)``, ``count()``.

A call is one aggregate of `cortex.job.functions.AGGREGATES` over one expression. ``count()`` and
``count(*)`` count rows, ``count(x)`` those where x is not null.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from cortex.job.expressions import Expression, Parser, columns_of
from cortex.job.functions import AGGREGATES, FUNCTIONS, Aggregate, count_of_arguments

__all__ = ["AGGREGATES", "Aggregate", "AggregateCall", "columns_of_call", "parse_aggregate"]


@dataclass(frozen=True, slots=True)
class AggregateCall:
    """`argument` is None for ``count()``. Two calls are equal if they compute the same."""

    function: str
    argument: Expression | None
    text: str = field(compare=False)


def parse_aggregate(text: str) -> AggregateCall:
    """Raises ExpressionError."""
    parser = Parser(text)
    token = parser.token
    if token.kind != "name":
        raise parser.problem(token.at, "expected an aggregate such as mean(x)", _known())
    parser.advance()
    name = token.text.lower()
    if not parser.is_op("("):
        cure = (
            f"write {AGGREGATES[name].usage}"
            if name in AGGREGATES
            else f"write an aggregate, such as min({token.text})"
        )
        raise parser.problem(token.at, f"{token.text!r} is not an aggregate call", cure)
    aggregate = AGGREGATES.get(name)
    if aggregate is None:
        raise parser.problem(token.at, f"there is no aggregate {token.text!r}", _nearest(name))
    args = parser.arguments(star=name == "count")
    if not aggregate.args_min <= len(args) <= aggregate.args_max:
        raise parser.problem(
            token.at,
            f"{name} takes {count_of_arguments(aggregate)}, not {len(args)}",
            f"write {aggregate.usage}",
        )
    if parser.token.kind != "end":
        raise parser.problem(
            parser.token.at,
            f"an aggregate stands alone, found {parser.token.text!r} after it",
            "compute inside it, such as mean(x * 9 / 5)",
        )
    return AggregateCall(name, Expression(args[0], text) if args else None, text)


def columns_of_call(call: AggregateCall) -> tuple[str, ...]:
    """The columns its argument reads."""
    return () if call.argument is None else columns_of(call.argument)


def _known() -> str:
    return "there are: " + ", ".join(a.usage for a in AGGREGATES.values())


def _nearest(name: str) -> str:
    if name in ("avg", "average"):
        return "did you mean mean?"
    if name in FUNCTIONS:
        return (
            f"{name} works on single values: put it inside an aggregate, such as max({FUNCTIONS[name].usage})"
        )
    near = difflib.get_close_matches(name, AGGREGATES, 1, 0.6)
    return f"did you mean {near[0]}?" if near else _known()
