"""Where CSV records begin and end: the automaton of pyarrow's CSV parser, on whole blocks with NumPy.

The rules, for the state before a byte (`OUT`, `IN`, `CLOSED` of `cortex.job.plan`):

* a quote opens a quoted field only at a field's start: after a delimiter, after a record's end, or at
  the first byte of the data. Elsewhere outside quotes it is literal text (``5" pipe``);
* inside a quoted field only a quote matters: it closes the field (`CLOSED`), and if the very next byte
  is a quote too the pair was one literal quote and the field goes on;
* what follows a closing quote up to the delimiter is literal text;
* outside quotes a record ends at ``\\n``, ``\\r\\n`` or a lone ``\\r``.

Only quotes change the state, so it is computed over quote positions. With every quote comes its kind
(by the byte before it): at a field's start, right after another quote, or neither.

* **Anywhere**: the state at a place is found from a few KB before it, by trying every state those bytes
  can begin in. A wrong guess does not survive the end of a quoted field, so the guesses agree almost at
  once, and then the state is certain; where they do not agree, more is looked at, in the end everything.
* **Fast path**: if every quote that would open under plain parity stands at a field's start or right
  after a closing one, parity is exact.
* **Exact path**: each kind is a function over the three states; functions compose, so the states after
  all quotes come from composing tables, a square root of the quotes at a time.

An escape character is masked out together with the byte it escapes before anything else is looked at;
only data from a record's start can be masked, so such files are read from their beginning.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from cortex.job.plan import CLOSED, IN, OUT, InputFile
from cortex.job.spec import CsvDialect
from cortex.limits import KIB

from .input_bytes import Opener, open_local
from .sources import FileSource, Source

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.int64]

_SCAN_BYTES: Final = 256 * KIB  # searched at once: stays in the processor's second-level cache
_SCAN_READ_BYTES: Final = 4096 * KIB
_START_WINDOW_BYTES: Final = 64 * KIB  # read at once while looking for a split's first record
_WINDOW_BYTES: Final = 8 * KIB  # looked at first around a place in a block; more where that is not enough
_BACK_BYTES: Final = (64 * KIB, 1024 * KIB)  # read before a split's end for its state, before all is read

_AGREE_QUOTES: Final = 32  # stepped over one by one until all guesses agree, mostly after two

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

    def settled_states(self, data: bytes | bytearray, low: int, high: int) -> set[int]:
        """The states that can be before byte `high`, whatever the one before byte `low` (> 0) is.

        One after the first quoted field or so: a wrong guess does not survive the end of a field. Two
        while there is no quote at all.
        """
        if not self.quote:
            return {OUT}
        before = data[low - 1]
        guesses = {OUT, IN, CLOSED} if before == self.quote[0] else {OUT, IN}
        if data.find(self.quote, low, high) < 0:
            return {IN if guess == IN else OUT for guess in guesses}
        view = np.frombuffer(data, dtype=np.uint8, count=high - low, offset=low)
        quotes = np.flatnonzero(view == self.quote[0])
        states = guesses
        for at, kind in zip(quotes.tolist(), self.kinds(view, quotes[:_AGREE_QUOTES], before).tolist()):
            states = {_STEPS[kind][state] for state in states}
            if len(states) == 1:
                return {self.end_state(data, low + at + 1, high, self.quote[0], states.pop())}
        return {self.end_state(data, low, high, before, guess) for guess in guesses}

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


class _Analysed:
    """``data[low:high]`` with the state after every one of its quotes; offsets are into `data`."""

    def __init__(
        self, grammar: Grammar, data: bytes | bytearray, low: int, high: int, start: int, before: int
    ) -> None:
        self._data, self._low, self._high = data, low, high
        self._start = start
        self._states: Bytes | None = None  # None: plain parity is exact
        self._quotes: Positions = np.empty(0, dtype=np.int64)
        if low < high and grammar.quote and data.find(grammar.quote, low, high) >= 0:
            view = np.frombuffer(data, dtype=np.uint8, count=high - low, offset=low)
            self._quotes = positions_of(view, grammar.quote[0])
            if not grammar.parity_holds(view, self._quotes, before, start):
                self._states = states_after(grammar.kinds(view, self._quotes, before), start)

    def _inside(self, positions: Positions) -> npt.NDArray[np.bool_]:
        """Which bytes stand in a quoted field; `positions` count from `low`."""
        number = np.searchsorted(self._quotes, positions)
        inside: npt.NDArray[np.bool_]
        if self._states is None:
            inside = (number % 2 == 1) != (self._start == IN)
        else:
            states = np.concatenate((np.array([self._start], dtype=np.uint8), self._states))
            inside = states[number] == IN
        return inside

    def record_ends(self, final: bool) -> Positions:
        """Every record end, in order. A ``\r`` at the very end ends a record only if `final`."""
        if self._low >= self._high:
            return np.empty(0, dtype=np.int64)
        size = self._high - self._low
        view = np.frombuffer(self._data, dtype=np.uint8, count=size, offset=self._low)
        lines = positions_of(view, 10)
        if self._data.find(b"\r", self._low, self._high) >= 0:
            returns = positions_of(view, 13)
            alone = view[np.minimum(returns + 1, size - 1)] != 10
            if returns[-1] == size - 1:
                alone[-1] = final
            lines = np.sort(np.concatenate((lines, returns[alone])))
        if len(self._quotes) or self._start == IN:
            lines = lines[~self._inside(lines)]
        return lines + (self._low + 1)

    def separators(self, delimiter: int) -> int:
        """How many delimiters stand outside quoted fields."""
        view = np.frombuffer(self._data, dtype=np.uint8, count=self._high - self._low, offset=self._low)
        found = positions_of(view, delimiter)
        return int(np.count_nonzero(~self._inside(found)))


class Stretch:
    """The first `count` bytes of `data`, which begin in state `start` after the byte `before`.

    `final`: nothing follows them, so that a ``\r`` at their very end is known to be alone.
    Record *ends* are offsets into `data`: of the byte after a record's line end. Only the bytes near the
    place asked about are looked at, as far as it takes to be certain of the state there.
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
        self._data = grammar.masked(data, count)
        self._count = count
        self._start = start
        self._before = before
        self._final = final

    def state_at(self, position: int) -> int:
        """The state before the byte at `position`."""
        window = _WINDOW_BYTES
        while window < position:
            states = self._grammar.settled_states(self._data, position - window, position)
            if len(states) == 1:
                return states.pop()
            window *= 8
        return self._grammar.end_state(self._data, 0, position, self._before, self._start)

    def end_state(self) -> int:
        return self.state_at(self._count)

    def _analysed(self, low: int, high: int) -> _Analysed:
        before = self._data[low - 1] if low else self._before
        return _Analysed(self._grammar, self._data, low, high, self.state_at(low), before)

    def record_ends(self) -> Positions:
        """Every record end, in order."""
        return self._analysed(0, self._count).record_ends(self._final)

    def field_at(self, position: int) -> int:
        """Which field of its record the byte at `position`, which is no line end, stands in; from 0 on."""
        low, start, window = position, 0, _WINDOW_BYTES
        while low > 0:
            low = max(0, position - window)
            ends = self._analysed(low, position).record_ends(True)
            if len(ends):
                start = int(ends[-1])
                break
            window *= 8
        return self._analysed(start, position).separators(self._grammar.delimiter[0])

    def first_end(self, low: int) -> int:
        """The smallest record end >= `low`, or -1."""
        at, window = max(low - 1, 0), _WINDOW_BYTES
        while at < self._count:
            stop = min(at + window, self._count)
            while stop < self._count and self._data[stop - 1] == 13:
                stop += 1  # a window does not end in the middle of \r\n
            ends = self._analysed(at, stop).record_ends(stop < self._count or self._final)
            index = int(np.searchsorted(ends, low))
            if index < len(ends):
                return int(ends[index])
            at, window = stop, window * 2
        return -1

    def last_end(self) -> int:
        """The largest record end, or 0 if there is none."""
        stop, window = self._count, _WINDOW_BYTES
        while stop > 0:
            low = max(0, stop - window)
            ends = self._analysed(low, self._count).record_ends(self._final)
            if len(ends):
                return int(ends[-1])
            stop, window = low, window * 8
        return 0


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


def scan_states(
    file: InputFile, boundaries: Sequence[int], open_input: Opener = open_local
) -> tuple[tuple[int, int, int], ...]:
    """`ends[i][s]`: the state before byte ``boundaries[i + 1]`` if it is s before ``boundaries[i]``.

    Exact for all three start states, which fall together after the first quoted field or so: mostly only
    a little before each boundary is read. Where there are no quotes everything is, unless whoever has the
    bytes says that there are none.
    """
    dialect = file.dialect or CsvDialect()
    grammar = Grammar(dialect)
    source = FileSource(file, open_input)
    try:
        ends = []
        for low, high in itertools.pairwise(boundaries):
            ends.append(_scan(source, grammar, low, high))
        source.finish()
        return tuple(ends)
    finally:
        source.close()


def _scan(source: Source, grammar: Grammar, low: int, high: int) -> tuple[int, int, int]:
    clear = source.without(grammar.quote, low, high)
    if clear < high:
        for back in _BACK_BYTES:
            if back < high - low:
                data, count, _ = source.window(high - back - 1, back + 1)
                certain = grammar.settled_states(data, 1, count)
                if len(certain) == 1:
                    state = certain.pop()
                    return state, state, state
    states = [OUT, IN, CLOSED]
    position = low
    while position < high:
        if clear > position:
            states = [IN if state == IN else OUT for state in states]
            position = clear
            continue
        before = source.window(position - 1, 1)[0][0] if position > source.file.data_start else NO_BYTE
        source.expect(position, min(position + _SCAN_READ_BYTES, high))
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
        clear = source.without(grammar.quote, position, high)
    return states[0], states[1], states[2]
