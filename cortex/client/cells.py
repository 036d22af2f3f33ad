"""Arguments of calls as cells, and cells' results as values. Pickles are made and read here, and nowhere else
in the client.

How arguments are pickled (what of the user's own modules travels by value) is said by a `Dump`, which the
floor above makes. Results are read only when it is their turn: until then they are bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cortex.client.call_errors import CallError, call_error, own_error
from cortex.errors import UserCodeError
from cortex.tasks.cell_pickles import Pickled, load_list
from cortex.wire.messages import CallForm, Cell, CellDone

Dump = Callable[[list[Any]], Pickled]
"""Pickles a list of entries. Raises whatever pickling one of them raises."""
Blame = Callable[[Any], str]
"""What inside an object cannot be pickled, in words; "" when all of it can."""


@dataclass(frozen=True)
class Group:
    """Neighbouring calls that are pickled together, or one that cannot be."""

    first: int
    count: int
    pickled: Pickled | None
    error: CallError | None = None


def pickle_calls(
    entries: list[Any],
    first: int,
    form: CallForm,
    name: str,
    dump: Dump,
    blame: Blame,
    numbered_from: int = 1,
) -> list[Group]:
    """All in one, but for those that cannot be pickled, which are named; those between them go together."""
    try:
        return [Group(first, len(entries), dump(entries))]
    except Exception as error:  # whatever the user's classes raise
        cause = error
    groups: list[Group] = []
    good = 0  # where a run of those that can begins

    def together(stop: int) -> None:
        if stop > good:
            groups.append(Group(first + good, stop - good, dump(entries[good:stop])))

    for index, entry in enumerate(entries):
        try:
            dump([entry])
        except Exception as error:
            together(index)
            failed = _unpicklable(_parts(entry, form, numbered_from), first + index, name, error, blame)
            groups.append(Group(first + index, 1, None, own_error(failed, first + index)))
            good = index + 1
    if not good:
        raise cause  # each can be pickled, and all together not: memory, most likely
    together(len(entries))
    return groups


def _unpicklable(
    parts: list[tuple[str, Any]], index: int, name: str, error: Exception, blame: Blame
) -> UserCodeError:
    where = ""
    for part, value in parts:
        if found := blame(value):
            inside = found.removeprefix(type(value).__name__)
            where = f"{part}{inside}" if inside != found else f"{part}, {found},"
            break
    failed = UserCodeError(
        f"call {index} of {name}: {where or 'its argument'} cannot be sent to the executors:"
        f" {type(error).__name__}: {error}",
        cure="give what it is made of, and make it in the function",
    )
    failed.__cause__ = error
    return failed


def _parts(entry: Any, form: CallForm, numbered_from: int) -> list[tuple[str, Any]]:
    if form == CallForm.ONE:
        return [("its argument", entry)]
    arguments, named = entry if form == CallForm.FULL else (entry, {})
    numbered = [(f"its argument {number}", value) for number, value in enumerate(arguments, numbered_from)]
    return [*numbered, *((f"its argument {key!r}", value) for key, value in named.items())]


class Results:
    """What came of a cell: calls [done.start, done.stop). `parts` are those of its attachment, mapped. By one
    thread at a time."""

    __slots__ = ("_parts", "_values", "cell", "done", "name")

    def __init__(self, done: CellDone, cell: Cell, name: str, parts: Sequence[memoryview] = ()) -> None:
        self.done = done
        self.cell = cell
        """What it is the result of: kept to be sent again, call by call, should this be unreadable."""
        self.name = name
        self._parts = parts
        self._values: list[Any] | None = None

    def read(self) -> list[Any]:
        """The values of all calls in order, a `CallError` in the place of each that failed. Raises whatever
        reading the pickle raises."""
        if self._values is None:
            values = self._load()
            if self.done.failed:
                values = self._with_failures(values)
            self._values, self._parts = values, ()
        return self._values

    def between(self, start: int, stop: int) -> list[Any]:
        """The values of calls [start, stop) of the cell."""
        values = self.read()
        low = self.done.start
        if start == low and stop == self.done.stop:
            return values
        return values[start - low : stop - low]

    def failures(self) -> dict[int, CallError]:
        """Number of the call in the cell -> what it failed with."""
        return {
            each.call: call_error(each, self.cell.first + each.call, self.name) for each in self.done.failed
        }

    def _load(self) -> list[Any]:
        done = self.done
        loaded: Any = []
        if done.attached is not None:
            loaded = load_list(self._parts[0], self._parts[1:])
        elif done.data:
            loaded = load_list(done.data, done.buffers)
        expected = done.stop - done.start - len(done.failed)
        if not isinstance(loaded, list) or (loaded and len(loaded) != expected):
            raise ValueError(f"{expected} results were expected")
        return loaded or [None] * expected

    def _with_failures(self, values: list[Any]) -> list[Any]:
        found = self.failures()
        rest = iter(values)
        calls = range(self.done.start, self.done.stop)
        return [found[call] if call in found else next(rest) for call in calls]
