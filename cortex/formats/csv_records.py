"""Where CSV records begin and end: the automaton of pyarrow's CSV parser, on whole blocks with NumPy.

The rules, for the state before a byte (`OUT`, `IN`, `CLOSED` of `cortex.job.plan`):

* a quote opens a quoted field only at a field's start: after a delimiter, after a record's end, or at
  the first byte of the data. Elsewhere outside quotes it is literal text (``5" pipe``);
* inside a quoted field only a quote matters: it closes the field (`CLOSED`), and if the very next byte
  is a quote too the pair was one literal quote and the field goes on;
* what follows a closing quote up to the delimiter is literal text;
* outside quotes a record ends at ``\\n``, ``\\r\\n`` or a lone ``\\r``.

Only quotes change the state, so it is computed over quote positions. With every quote comes its kind
(by the byte before it): at a field's start, right after another quote, or neither. **Fast path**: if
every quote that would open under plain parity stands at a field's start or right after a closing one,
parity is exact. **Exact path**: each kind is a function over the three states; functions compose, so the
states after all quotes come from composing tables, a square root of the quotes at a time.

An escape character is masked out together with the byte it escapes before anything else is looked at;
only data from a record's start can be masked, so such files are read from their beginning.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cortex.job.plan import CLOSED, IN, OUT, InputFile
from cortex.job.spec import CsvDialect
from cortex.limits import KIB

from .sources import FileSource, Source

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]

_SCAN_BYTES: Final = 256 * KIB  # searched at once: stays in the processor's second-level cache
_SCAN_READ_BYTES: Final = 4096 * KIB
_START_WINDOW_BYTES: Final = 64 * KIB  # read at once while looking for a split's first record
_JUMPS_MAX: Final = 16  # quoted newlines stepped over one by one before all are computed at once

NO_BYTE: Final = -1
"""The byte before the first byte of the data."""

_NEITHER, _FIELD_START, _AFTER_QUOTE = 0, 1, 2
# What a quote of each kind does to the states (OUT, IN, CLOSED) before it.
_STEPS: Final = ((OUT, CLOSED, OUT), (IN, CLOSED, IN), (OUT, CLOSED, IN))


def _tables() -> tuple[Bytes, Bytes, Bytes]:
    """Functions over the three states as numbers 0..26: of each kind, composed, applied."""
    functions = [(a, b, c) for a in range(3) for b in range(3) for c in range(3)]
    number = {f: i for i, f in enumerate(functions)}
    of_kind = np.array([number[s] for s in _STEPS] + [number[(OUT, IN, CLOSED)]], dtype=np.uint8)
    compose = np.empty(27 * 32, dtype=np.uint8)
    apply = np.empty(27 * 4, dtype=np.uint8)
    for f, first in enumerate(functions):
        apply[f * 4 : f * 4 + 3] = first
        for g, then in enumerate(functions):
            compose[f * 32 + g] = number[(then[first[0]], then[first[1]], then[first[2]])]
    return of_kind, compose, apply


_OF_KIND, _COMPOSE, _APPLY = _tables()
_IDENTITY_KIND: Final = 3


def states_after(kinds: Bytes, start: int) -> Bytes:
    """The state right after each quote, exactly, whatever the data."""
    count = len(kinds)
    if count < 64:
        out, state = [], start
        for kind in kinds.tolist():
            state = _STEPS[kind][state]
            out.append(state)
        return np.array(out, dtype=np.uint8)
    width = int(count**0.5) + 1
    rows = -(-count // width)
    padded = np.full(rows * width, _IDENTITY_KIND, dtype=np.uint8)
    padded[:count] = kinds
    # Column j holds the j-th quote of every row: one step for all rows at once.
    prefix = _OF_KIND[padded].reshape(rows, width).T.copy()
    for j in range(1, width):
        prefix[j] = _COMPOSE[prefix[j - 1].astype(np.intp) * 32 + prefix[j]]
    starts = np.empty(rows, dtype=np.intp)
    state = start
    for row, function in enumerate(prefix[-1].tolist()):
        starts[row] = state
        state = int(_APPLY[function * 4 + state])
    after: Bytes = _APPLY[prefix.astype(np.intp) * 4 + starts].T.reshape(-1)[:count]
    return after


def positions_of(data: Bytes, byte: int) -> Positions:
    parts = []
    for at in range(0, len(data), _SCAN_BYTES):
        found = np.flatnonzero(data[at : at + _SCAN_BYTES] == byte)
        if len(found):
            parts.append(found + at if at else found)
    if len(parts) == 1:
        return parts[0].astype(np.int64, copy=False)
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)


class Grammar:
    """A dialect's bytes and tables, made once per file."""

    def __init__(self, dialect: CsvDialect) -> None:
        self.delimiter = dialect.delimiter.encode()
        self.quote = dialect.quote.encode()
        self.escape = dialect.escape.encode()
        self._escaped = re.compile(re.escape(self.escape) + b".", re.DOTALL) if self.escape else None
        self.kind_of_byte_before = np.zeros(256, dtype=np.uint8)
        for opener in (self.delimiter, b"\n", b"\r"):
            self.kind_of_byte_before[opener[0]] = _FIELD_START
        if self.quote:
            self.kind_of_byte_before[self.quote[0]] = _AFTER_QUOTE

    def masked(self, data: bytes | bytearray, count: int) -> bytes | bytearray:
        """`data` with every escape and what it escapes blanked out; the same length."""
        if self._escaped is None or data.find(self.escape, 0, count) < 0:
            return data
        return self._escaped.sub(b"\0\0", bytes(memoryview(data)[:count]))

    def kind_of_first(self, before: int) -> int:
        """The kind of a quote that is the first byte looked at; `before` as in `Stretch`."""
        if before == NO_BYTE or self.kind_of_byte_before[before] == _FIELD_START:
            return _FIELD_START
        return _AFTER_QUOTE  # harmless if it is not: the state before it then is not CLOSED

    def end_state(self, data: bytes | bytearray, low: int, high: int, before: int, start: int) -> int:
        """State before byte `high` if it is `start` before byte `low`; `before` is the byte before `low`."""
        if low >= high or not self.quote:
            return start
        if data.find(self.quote, low, high) < 0:
            return IN if start == IN else OUT
        view = np.frombuffer(data, dtype=np.uint8, count=high - low, offset=low)
        quotes = np.flatnonzero(view == self.quote[0])
        state = self._parity(view, quotes, before, start)
        if state < 0:
            state = int(states_after(self.kinds(view, quotes, before), start)[-1])
        return OUT if state == CLOSED and quotes[-1] != len(view) - 1 else state

    def kinds(self, view: Bytes, quotes: Positions, before: int) -> Bytes:
        kinds: Bytes = self.kind_of_byte_before[view[quotes - 1]]
        if len(quotes) and quotes[0] == 0:
            kinds[0] = self.kind_of_first(before)
        return kinds

    def parity_holds(self, view: Bytes, quotes: Positions, before: int, start: int) -> bool:
        """True if every second quote really opens or reopens a field, so that parity is exact."""
        opening = quotes[1 if start == IN else 0 :: 2]
        if not len(opening):
            return True
        if opening[0] == 0:
            kind = self.kind_of_first(before)
            if kind != _FIELD_START and start != CLOSED:
                return False
            opening = opening[1:]
        return bool(self.kind_of_byte_before[view[opening - 1]].all())

    def _parity(self, view: Bytes, quotes: Positions, before: int, start: int) -> int:
        if not self.parity_holds(view, quotes, before, start):
            return -1
        odd = len(quotes) % 2 == 1
        return (CLOSED if odd else IN) if start == IN else (IN if odd else CLOSED)


class Stretch:
    """The first `count` bytes of `data`, which begin in state `start` after the byte `before`.

    `final`: nothing follows them, so that a ``\\r`` at their very end is known to be alone.
    Record *ends* are offsets into `data`: of the byte after a record's line end.
    """

    def __init__(
        self,
        grammar: Grammar,
        data: bytes | bytearray,
        count: int,
        *,
        start: int = OUT,
        before: int = NO_BYTE,
        final: bool,
    ) -> None:
        self._grammar = grammar
        self._data = data = grammar.masked(data, count)
        self._count = count
        self._start = start
        self._before = before
        self._final = final
        self._all: Positions | None = None
        self._states: Bytes | None = None
        self._parity = True
        self._quotes: Positions = np.empty(0, dtype=np.int64)
        if count and grammar.quote and data.find(grammar.quote, 0, count) >= 0:
            view = np.frombuffer(data, dtype=np.uint8, count=count)
            self._quotes = positions_of(view, grammar.quote[0])
            self._parity = grammar.parity_holds(view, self._quotes, before, start)
            if not self._parity:
                self._states = states_after(grammar.kinds(view, self._quotes, before), start)

    def _state_after_quotes(self, number: Any) -> Any:
        """State after the first `number` (> 0) quotes; CLOSED may already be OUT again."""
        if self._states is not None:
            return self._states[number - 1]
        flipped = number % 2 == 1
        return np.where(flipped != (self._start == IN), IN, CLOSED)

    def is_inside(self, position: int) -> bool:
        """True if the byte at `position` stands in a quoted field."""
        number = int(np.searchsorted(self._quotes, position))
        if number == 0:
            return self._start == IN
        return int(self._state_after_quotes(number)) == IN

    def end_state(self) -> int:
        number = len(self._quotes)
        if number == 0:
            return self._start if not self._count else (IN if self._start == IN else OUT)
        state = int(self._state_after_quotes(number))
        return OUT if state == CLOSED and self._quotes[-1] != self._count - 1 else state

    def record_ends(self) -> Positions:
        """Every record end, in order. Made once, for all newlines at once."""
        if self._all is None:
            self._all = self._record_ends()
        return self._all

    def _record_ends(self) -> Positions:
        if not self._count:
            return np.empty(0, dtype=np.int64)
        view = np.frombuffer(self._data, dtype=np.uint8, count=self._count)
        lines = positions_of(view, 10)
        if self._data.find(b"\r", 0, self._count) >= 0:
            returns = positions_of(view, 13)
            last = returns[-1] == self._count - 1
            following = view[np.minimum(returns + 1, self._count - 1)]
            alone = following != 10
            if last and not self._final:
                alone[-1] = False
            lines = np.sort(np.concatenate((lines, returns[alone])))
        if len(self._quotes) or self._start == IN:
            number = np.searchsorted(self._quotes, lines)
            inside = np.full(len(lines), self._start == IN)
            some = number > 0
            inside[some] = self._state_after_quotes(number[some]) == IN
            lines = lines[~inside]
        return lines + 1

    def first_end(self, low: int) -> int:
        """The smallest record end >= `low`, or -1."""
        at = max(low - 1, 0)
        for _ in range(_JUMPS_MAX):
            line = self._data.find(b"\n", at, self._count)
            stop = self._count if line < 0 else line
            alone = self._data.find(b"\r", at, stop)
            if alone >= 0 and alone + 1 == line:
                alone = -1
            if alone >= 0 and alone + 1 == self._count and not self._final:
                alone = -1
            at = alone if alone >= 0 else line
            if at < 0:
                return -1
            if not self.is_inside(at):
                return at + 1
            number = int(np.searchsorted(self._quotes, at))
            if number == len(self._quotes):
                return -1
            at = int(self._quotes[number]) + 1
        ends = self.record_ends()
        index = int(np.searchsorted(ends, low))
        return int(ends[index]) if index < len(ends) else -1

    def last_end(self) -> int:
        """The largest record end, or 0 if there is none."""
        line = self._data.rfind(b"\n", 0, self._count)
        alone = self._data.rfind(b"\r", line + 1, self._count)
        if alone >= 0 and alone + 1 == self._count and not self._final:
            alone = self._data.rfind(b"\r", line + 1, alone)
        at = max(line, alone)
        if at < 0:
            return 0
        if not self.is_inside(at):
            return at + 1
        ends = self.record_ends()
        return int(ends[-1]) if len(ends) else 0


def first_record_start(source: Source, grammar: Grammar, offset: int, state: int, end: int) -> int:
    """The first record start at or after `offset`, given the quote state before it.

    `end` bounds the search: `end` itself is returned when no record starts before it. A record
    starts at the file's `data_start`, and where the byte before ends a record (``\\r\\n`` is one end).
    """
    if offset <= source.file.data_start:
        return min(source.file.data_start, end)
    buffer, _, _ = source.window(offset - 1, 1)
    before, position = buffer[0], offset
    while position < end:
        buffer, count, final = source.window(position, _START_WINDOW_BYTES)
        if not count:
            return end
        if state == OUT and before == 10:
            return position
        if state == OUT and before == 13:
            return min(end, position + 1 if buffer[0] == 10 else position)
        stretch = Stretch(grammar, buffer, count, start=state, before=before, final=final)
        found = stretch.first_end(1)
        if found > 0:
            return min(end, position + found)
        state, before, position = stretch.end_state(), buffer[count - 1], position + count
    return end


def scan_states(file: InputFile, boundaries: Sequence[int]) -> tuple[tuple[int, int, int], ...]:
    """`ends[i][s]`: the state before byte ``boundaries[i + 1]`` if it is s before ``boundaries[i]``.

    Exact for all three start states: they fall together after the first quoted field or so, and only
    different ones are followed.
    """
    dialect = file.dialect or CsvDialect()
    grammar = Grammar(dialect)
    source = FileSource(file)
    try:
        ends = []
        for low, high in itertools.pairwise(boundaries):
            ends.append(_scan(source, grammar, low, high))
        source.finish()
        return tuple(ends)
    finally:
        source.close()


def _scan(source: Source, grammar: Grammar, low: int, high: int) -> tuple[int, int, int]:
    before = NO_BYTE
    if low > source.file.data_start:
        before = source.window(low - 1, 1)[0][0]
    states = [OUT, IN, CLOSED]
    position = low
    while position < high:
        buffer, count, _ = source.window(position, min(_SCAN_READ_BYTES, high - position))
        for at in range(0, count, _SCAN_BYTES):
            stop = min(at + _SCAN_BYTES, count)
            known: dict[int, int] = {}
            for i, state in enumerate(states):
                if state not in known:
                    known[state] = grammar.end_state(buffer, at, stop, before, state)
                states[i] = known[state]
            before = buffer[stop - 1]
        position += count
    return states[0], states[1], states[2]
