"""Where the pairs of a row-form map go: to an output part, to the shuffle, or folded to the shuffle.

An emitter takes blocks of records with the user's map function and applies it itself, so that the inner
loop is one Python loop with nothing between. `records` raises whatever the user's function raised; the
caller makes the user's error of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from itertools import chain, islice, pairwise
from operator import length_hint
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cortex.errors import CortexError, ValueTypeError
from cortex.job.output_types import OutputTypes
from cortex.limits import FOLD_KEYS_MAX, MIB
from cortex.shuffle.aggregation import AggregateCollector, Aggregation
from cortex.shuffle.collector import Place, RowCollector
from cortex.shuffle.keys import decode_keys, encode_keys
from cortex.shuffle.run_schema import VALUES, Layout
from cortex.shuffle.scalars import plain_kind
from cortex.shuffle.values import ARROW_TYPES, NONE, PICKLE, decode_values, encode_values
from cortex.tasks import folding
from cortex.tasks.combined_values import INT_MAX, INT_MIN, CombinedValues, is_unicode
from cortex.tasks.decimal_sums import added
from cortex.tasks.pair_buffer import PAIRS_AT_ONCE, PairBuffer, bytes_of
from cortex.tasks.part_output import PAIRS_BYTES, PairWriter, check_pairs
from cortex.tasks.shuffle_output import ShuffleOutput
from cortex.tasks.user_errors import raise_fold_error, shorten

_PAIRS_AT_ONCE_BYTES: Final = 12 * MIB  # of pairs as Python objects, and of the columns made of them
_SAMPLE_PAIRS: Final = 64  # looked at to see what kind of keys and values there are
_RECORDS_AT_ONCE: Final = 4096  # folded between two looks at the size of the table
_END: Final = object()
_ENTRY_BYTES: Final = 130  # of a dict's entry, its growth, and the object of a small value


class PairEmitter(Protocol):
    rows_out: int
    """Pairs emitted so far, before any fold."""

    @property
    def types(self) -> OutputTypes: ...

    def records(self, records: Iterator[Any], map_record: folding.MapRecord) -> None:
        """`records` is a list's iterator, used up at the end. The record in hand is the last one taken."""

    def flush(self) -> None:
        """All that is held goes where it belongs: after the last record."""


class PairsToPart:
    """A map-only job."""

    def __init__(self, writer: PairWriter) -> None:
        self.rows_out = 0
        self._writer = writer
        self._buffer = PairBuffer(PAIRS_BYTES, self._send)

    def records(self, records: Iterator[Any], map_record: folding.MapRecord) -> None:
        self._buffer.take(folding.pairs_of(records, map_record))
        self._buffer.send()  # now: a pair that cannot be written is one of the records in hand

    @property
    def types(self) -> OutputTypes:
        return self._writer.types

    def _send(self, pairs: list[Any]) -> None:
        self._writer.write_pairs(pairs, "map()")
        self.rows_out += len(pairs)

    def flush(self) -> None:
        return None


def pairs_bytes(budget_bytes: int) -> int:
    """What pairs may weigh that wait to be sent to a collector with this budget."""
    return min(_PAIRS_AT_ONCE_BYTES, budget_bytes // 3)


def value_layout(key_type: str, keys: Sequence[pa.Array], tag: str, placed: bool) -> Layout:
    """The layout of pairs in a run."""
    return Layout(
        key_type, tuple(k.type for k in keys), f"{VALUES}:{tag}", (("value", ARROW_TYPES[tag]),), placed
    )


class PairsToShuffle:
    """Every pair, as it is. `as_columns`: the reduce takes the values as a column, so they have one type."""

    def __init__(self, collector: RowCollector, placed: bool, as_columns: bool) -> None:
        self.rows_out = 0
        self.types = OutputTypes()
        self._as_columns = as_columns
        self._collector = collector
        self._placed = placed
        self._buffer = PairBuffer(pairs_bytes(collector.budget_bytes), self._send)

    def records(self, records: Iterator[Any], map_record: folding.MapRecord) -> None:
        self._buffer.take(folding.pairs_of(records, map_record))

    def _send(self, pairs: list[Any]) -> None:
        check_pairs(pairs, "map()")
        self.rows_out += len(pairs)
        keys, values = zip(*pairs)
        key_type, columns = encode_keys(keys)
        tag, column = encode_values(values)
        self.types = self.types.joined(OutputTypes(key_type, tag if self._as_columns else ""))
        self._collector.add(value_layout(key_type, columns, tag, self._placed), columns, [column])

    def flush(self) -> None:
        self._buffer.send()
        self._collector.flush()


class FoldedPairs:
    """Pairs combined before they are shuffled.

    Numbers and text under sum, min and max are folded by kernels; their keys first in a dict where that is
    safe. Everything else is folded by the user's function, or by Python's own, value by value.
    """

    def __init__(
        self,
        output: ShuffleOutput,
        budget_bytes: int,
        combine: str,
        function: Callable[[Any, Any], Any] | None,
        place: Place | None,
    ) -> None:
        self.rows_out = 0
        self.types = OutputTypes()
        self._output = output
        self._budget_bytes = budget_bytes
        self._combine = combine
        self._function = function or PYTHON_FOLDS[combine]
        self._values = None if combine == "binary" else CombinedValues(combine)
        self._place = place
        self._fold: folding.Fold | None = None
        self._chosen = False
        self._new_table: Callable[[], folding.Table] = dict
        self._table: folding.Table = {}
        self._at_once = 1
        """Records folded between two looks at the table: each may have one new key or a million."""
        self._buffer = PairBuffer(pairs_bytes(budget_bytes), self._send_pairs)
        self._vector: AggregateCollector | None = None
        self._objects: RowCollector | None = None

    def records(self, records: Iterator[Any], map_record: folding.MapRecord) -> None:
        pairs = folding.pairs_of(records, map_record)
        if not self._chosen:
            self._buffer.hold(list(islice(pairs, _SAMPLE_PAIRS)))
            self._choose()
            if self._fold is not None:
                self._fold_pairs(pairs)
        if self._fold is None:
            self._buffer.take(pairs)
            return
        while length_hint(records):
            before = len(self._table)
            self._fold(self._table, islice(records, self._at_once), map_record)
            size, keys_max = len(self._table), self._keys_max()
            if size >= keys_max:
                self._send_table()
            if size - before < keys_max // 16:
                self._at_once = min(_RECORDS_AT_ONCE, 2 * self._at_once)
            elif self._at_once > 1:
                self._at_once //= 2
            else:  # one record gives very many keys: looked at pair by pair, which is slower
                self._fold_pairs(pairs)

    def _fold_pairs(self, pairs: Iterator[Any]) -> None:
        assert self._fold is not None
        while (pair := next(pairs, _END)) is not _END:
            some = chain((pair,), islice(pairs, _RECORDS_AT_ONCE))
            self._fold(self._table, (some,), lambda pairs: pairs)
            if len(self._table) >= self._keys_max():
                self._send_table()

    def _keys_max(self) -> int:
        """How many keys the table may have, by what the newest weigh."""
        newest = list(islice(reversed(self._table), 8))
        if not newest:
            return FOLD_KEYS_MAX
        weight = sum(_ENTRY_BYTES + bytes_of(key) + bytes_of(self._table[key]) for key in newest)
        return min(FOLD_KEYS_MAX, max(1, self._budget_bytes * len(newest) // (2 * weight)))

    def _choose(self) -> None:
        """Once there are pairs: are these keys safe in a dict, and these values under its fold?"""
        pairs = self._buffer.pairs
        if not pairs:
            return
        check_pairs(pairs, "map()")
        self._chosen = True
        kinds: set[Any] = {type(key) for key, _ in pairs}
        if set(map(plain_kind, kinds)) not in ({str}, {bytes}):
            return
        if self._values is None:
            self._fold = folding.fold_binary(self._function)
        else:
            kind = type(self._values.plain([value for _, value in pairs])[0])
            if not self._values.in_dict:
                return
            self._fold, self._new_table = folding.fold_builtin(self._combine, kind, self._values.plain_one)
        self._table = self._new_table()
        self._buffer.clear()
        for key, value in pairs:
            try:
                self._fold(self._table, (((key, value),),), lambda some: some)
            except Exception as error:
                raise_fold_error(error, "combine", self._table.get(key), value)
                raise

    def _send_table(self) -> None:
        keys, values = list(self._table), list(self._table.values())
        self._table = self._new_table()  # before there are columns: what two lists take is a ninth of the old
        while keys:
            some = values[-PAIRS_AT_ONCE:]
            self._add(keys[-PAIRS_AT_ONCE:], some if self._values is None else self._values.plain(some))
            del keys[-PAIRS_AT_ONCE:], values[-PAIRS_AT_ONCE:]

    def _send_pairs(self, pairs: list[Any]) -> None:
        check_pairs(pairs, "map()")
        keys, values = zip(*pairs)
        self._add(keys, values if self._values is None else self._values.taken(values))

    def _add(self, keys: Sequence[Any], values: Sequence[Any]) -> None:
        self.rows_out += len(keys)
        if self._values is not None and self._combine == "sum" and type(values[0]) is int:
            keys, values = self._values.carried(keys, values)
        key_type, columns = encode_keys(keys)
        self.types = self.types.joined(OutputTypes(key_type, self._values.kind if self._values else ""))
        if self._combine == "sum" and type(values[0]) is complex:
            self._vector_for("float", 2).add(key_type, columns, complex_parts(values))
            return
        tag, column = encode_values(values)
        if self._values is not None and tag not in (PICKLE, NONE):
            self._vector_for(tag).add(key_type, columns, [column])
            return
        if self._values is not None and type(values[0]) is int:
            raise self._values.too_large(next(v for v in values if not INT_MIN <= v <= INT_MAX))
        if self._values is not None and type(values[0]) is str:
            raise self._values.not_unicode(next(v for v in values if not is_unicode(v)))
        self._objects_collector().add(
            value_layout(key_type, columns, tag, self._place is not None), columns, [column]
        )

    def _vector_for(self, tag: str, parts: int = 1) -> AggregateCollector:
        if self._vector is None:
            aggregation = folded_columns(self._combine, [ARROW_TYPES[tag]] * parts)
            self._vector = AggregateCollector(
                self._output.sink, self._budget_bytes, aggregation, place=self._place, few_groups=False
            )
        return self._vector

    def _objects_collector(self) -> RowCollector:
        if self._objects is None:
            self._objects = RowCollector(
                self._output.sink,
                self._budget_bytes,
                place=self._place,
                combine=python_fold(self._function),
            )
        return self._objects

    def flush(self) -> None:
        self._buffer.send()
        self._send_table()
        if self._vector is not None:
            self._vector.flush()
        if self._objects is not None:
            self._objects.flush()


def pairs_error(map_record: folding.MapRecord, record: Any) -> CortexError | None:
    """What is wrong with the pairs that `map_record` gives for this record by itself, if anything is."""
    try:
        inspect.signature(map_record).bind(record)
    except TypeError as error:
        return ValueTypeError(
            f"map cannot be called with a record: {error}",
            cure="define it as map(self, record), or as function(record) for a job file",
        )
    except ValueError:  # a builtin without a signature
        pass
    try:
        made = map_record(record)
    except Exception:  # not of the pairs
        return None
    if made is None:
        return None
    if isinstance(made, tuple) and len(made) == 2 and not isinstance(made[0], tuple):
        return ValueTypeError(
            f"map() returned one pair, {shorten(repr(made))}, where any number of pairs is expected",
            cure="yield it instead of returning it: yield key, value",
        )
    try:
        pairs = list(made)
        if pairs:
            check_pairs(pairs, "map()")
            keys, values = zip(*pairs)
            encode_keys(keys)
            encode_values(values)
    except CortexError as error:
        return error
    except TypeError:
        return ValueTypeError(
            f"map() returned {shorten(repr(made))}, where pairs are expected",
            cure="yield pairs from map(): yield key, value",
        )
    except Exception:
        return None
    return None


def folded_columns(combine: str, types: Sequence[pa.DataType]) -> Aggregation:
    """Of values that kernels fold: one column, or the two parts of complex numbers."""
    return Aggregation([(combine, index) for index in range(len(types))], types)


def complex_parts(values: Sequence[complex]) -> list[pa.Array]:
    """Real and imaginary parts; `complex_values` puts them together."""
    numbers = np.array(values, dtype=np.complex128)
    return [pa.array(np.ascontiguousarray(part), from_pandas=False) for part in (numbers.real, numbers.imag)]


def complex_values(real: pa.Array, imaginary: pa.Array) -> list[complex]:
    return list(map(complex, real.to_pylist(), imaginary.to_pylist()))


def _sum(first: Any, second: Any) -> Any:
    if type(first) is Decimal and type(second) is Decimal:
        return added(first, second)
    return first + second


PYTHON_FOLDS: dict[str, Callable[[Any, Any], Any]] = {
    "sum": _sum,
    "min": min,
    "max": max,
}


def python_fold(
    function: Callable[[Any, Any], Any],
) -> Callable[[Layout, pa.RecordBatch, NDArray[np.int64]], tuple[Layout, pa.RecordBatch]]:
    """Folds each group of a sorted batch of pairs to one pair, earlier values first."""

    def combine(
        layout: Layout, batch: pa.RecordBatch, starts: NDArray[np.int64]
    ) -> tuple[Layout, pa.RecordBatch]:
        values = decode_values(layout.value_tag, batch.column(1 + layout.keys))
        bounds = [*starts.tolist(), len(values)]
        folded = []
        value, position = None, 0
        try:
            for begin, end in pairwise(bounds):
                value = values[begin]
                for position in range(begin + 1, end):
                    value = function(value, values[position])
                folded.append(value)
        except Exception as error:
            raise_fold_error(error, "combine", value, values[position])
            raise
        return folded_pairs(layout, batch, starts, folded)

    return combine


def method_fold(
    method: Callable[[Any, Any], Any],
) -> Callable[[Layout, pa.RecordBatch, NDArray[np.int64]], tuple[Layout, pa.RecordBatch]]:
    """The same by a user's ``combine(key, values)``, which yields pairs with the key it was given."""

    def combine(
        layout: Layout, batch: pa.RecordBatch, starts: NDArray[np.int64]
    ) -> tuple[Layout, pa.RecordBatch]:
        firsts = batch.take(pa.array(starts))
        keys = decode_keys(layout.key_type, firsts.columns[1 : 1 + layout.keys])
        values = decode_values(layout.value_tag, batch.column(1 + layout.keys))
        bounds = [*starts.tolist(), len(values)]
        kept: list[int] = []
        folded: list[Any] = []
        for key, (begin, end) in zip(keys, pairwise(bounds)):
            made = list(method(key, iter(values[begin:end])) or ())
            if made:
                check_pairs(made, "combine()")
            for made_key, value in made:
                if type(made_key) is not type(key) or (made_key != key and made_key == made_key):
                    raise ValueTypeError(
                        f"combine() was given the key {key!r} and yielded the key {made_key!r}",
                        cure="yield the key that combine was given; change keys in map or reduce",
                    )
                kept.append(begin)
                folded.append(value)
        return folded_pairs(layout, batch, np.array(kept, dtype=np.int64), folded)

    return combine


def folded_pairs(
    layout: Layout, batch: pa.RecordBatch, rows: NDArray[np.int64], values: Sequence[Any]
) -> tuple[Layout, pa.RecordBatch]:
    """The keys of these rows with new values."""
    tag, column = encode_values(values)
    taken = batch.select(list(range(1 + layout.keys))).take(pa.array(rows, type=pa.int64()))
    made = Layout(
        layout.key_type, layout.key_types, f"{VALUES}:{tag}", (("value", ARROW_TYPES[tag]),), layout.placed
    )
    return made, pa.RecordBatch.from_arrays([*taken.columns, column], schema=made.schema())
