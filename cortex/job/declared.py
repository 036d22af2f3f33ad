"""The declared form (`where`, `select`, `group_by`, `aggregate`), checked before any input is read.

Shared by job.yaml and by the class attributes of a MapReduceJob: every problem is found in one pass
and names its place as a path of keys, such as ``("select", "f")``. Types are checked later, against
the input's columns (`cortex.kernels.expressions`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cortex.errors import ExpressionError
from cortex.job.aggregates import columns_of_call, parse_aggregate
from cortex.job.expressions import parse_expression


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in a job. `position` is an offset in the expression's text; `shown` the caret lines."""

    path: tuple[str, ...]
    message: str
    cure: str = ""
    position: int | None = None
    shown: str = ""


def validate_declared(
    where: str,
    select: Mapping[str, str],
    group_by: Sequence[str],
    aggregate: Mapping[str, str],
    problems: list[Problem],
) -> None:
    """Append what is wrong with a declared job to `problems`. Empty `select` passes all columns."""
    if where:
        _parsed(("where",), where, problems)
    for name, text in select.items():
        _output_name(("select", name), name, problems)
        _parsed(("select", name), text, problems)
    seen: set[str] = set()
    for index, name in enumerate(group_by):
        path = ("group_by", str(index))
        if name in seen:
            problems.append(Problem(path, f"column {name!r} is named twice", "name it once"))
        seen.add(name)
        _selected(path, name, select, problems)
    for name, text in aggregate.items():
        path = ("aggregate", name)
        _output_name(path, name, problems)
        if name in seen:
            problems.append(
                Problem(path, f"{name!r} is already a column of group_by", "give the result another name")
            )
        try:
            call = parse_aggregate(text)
        except ExpressionError as error:
            problems.append(_expression_problem(path, error))
            continue
        for column in columns_of_call(call):
            _selected(path, column, select, problems)
    if group_by and not aggregate:
        problems.append(
            Problem(("group_by",), "group_by has nothing to compute", "add aggregate: {rows: count()}")
        )


def _parsed(path: tuple[str, ...], text: str, problems: list[Problem]) -> None:
    try:
        parse_expression(text)
    except ExpressionError as error:
        problems.append(_expression_problem(path, error))


def _expression_problem(path: tuple[str, ...], error: ExpressionError) -> Problem:
    return Problem(path, error.message, error.cure, error.position, error.details.get("expression", ""))


def _output_name(path: tuple[str, ...], name: str, problems: list[Problem]) -> None:
    if not name.strip():
        problems.append(Problem(path, "a column's name is empty", "give it a name"))


def _selected(path: tuple[str, ...], name: str, select: Mapping[str, str], problems: list[Problem]) -> None:
    if not select or name in select:
        return
    near = difflib.get_close_matches(name, select, 1, 0.6)
    problems.append(
        Problem(
            path,
            f"{name!r} is not a column of select",
            f"did you mean {near[0]!r}?" if near else f"add it to select: {{{name}: {name}}}",
        )
    )
