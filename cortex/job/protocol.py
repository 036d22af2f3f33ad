"""What user code looks like to an executor: the methods it may call on the unpickled job object.

The client sends ``cloudpickle.dumps(code)`` where `code` satisfies `JobCode` (a `MapReduceJob`, or the
adapter the client builds for functions named in job.yaml); a declared job sends ``b""``. Which of these
methods are called is decided by `JobSpec` alone (`map_form`, `reduce_form`, `combine`,
`custom_partition`), never by looking at the object.

Row-form output columns that Arrow has no type for carry field metadata, so that the submitting client
gives back the Python value: see `FIELD_KIND`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

FIELD_KIND: Final = b"cortex"
"""Key of an Arrow field's metadata; its value is one of the KIND_ constants."""
KIND_PICKLE: Final = b"pickle"  # binary column: each cell is a pickle, loaded by the submitting client only
KIND_TUPLE: Final = b"tuple"  # struct column: each cell is a Python tuple of the struct's fields
KIND_JSON: Final = b"json"  # string column: each cell is JSON, of Python values that Arrow has no type for
KIND_DECIMAL: Final = b"decimal"  # string column: each cell is a decimal.Decimal as text

KEY_COLUMN: Final = "key"
VALUE_COLUMN: Final = "value"


class JobCode(Protocol):
    """The job object in an executor. One object serves all the tasks of its executor, one at a time."""

    combine_function: Any
    """`combine` "binary": ``combine_function(a, b) -> value``; associative, a before b in input order."""

    def setup(self) -> None:
        """Called before each task's first record."""

    def cleanup(self) -> None:
        """Called after each task's last record; not when the task failed."""

    def map(self, record: Any) -> Iterable[tuple[Any, Any]] | None:
        """`map_form` "rows". None counts as no pairs."""

    def map_batch(self, batch: Any) -> Any:
        """`map_form` "batch": a RecordBatch or Table (or an iterable of them, or None) for a batch."""

    def combine(self, key: Any, values: Iterable[Any]) -> Iterable[tuple[Any, Any]]:
        """`combine` "method": pairs with the key it was given."""

    def reduce(self, key: Any, values: Iterator[Any]) -> Iterable[tuple[Any, Any]] | None:
        """`reduce_form` "rows"."""

    def reduce_batch(self, batches: Iterator[Any]) -> Iterable[Any]:
        """`reduce_form` "batch": bounded batches in key order; a group may span several."""

    def partition(self, key: Any, n: int) -> int:
        """`custom_partition`: the reducer, in range(n), that gets the key."""

    def _take_counters(self) -> dict[str, dict[str, int]]:
        """Counts since the last call, reset: taken once at the end of every task."""
