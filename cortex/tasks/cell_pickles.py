"""The pickles that cells and their results are: a list, protocol 5, with large buffers beside it.

Used by clients and executors alike. A plain pickle is tried first, for it is several times as fast; what it
does not take (classes and functions of ``__main__``, lambdas) travels by value, as cloudpickle does it.
Buffers are not copied on the way out, and are writable on arrival.
"""

from __future__ import annotations

import pickle
import types
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from cortex.errors import from_report
from cortex.limits import ATTACH_BYTES, CELL_BUFFER_BYTES_MIN
from cortex.wire.messages import CallFailed

Buffers = Callable[[pickle.PickleBuffer], bool]
Dumps = Callable[[Any, Buffers], bytes]
"""A pickler: the value, and what is asked of each buffer (true: into the pickle with it)."""


class Pickled:
    """A pickle and its buffers, which are still the pickled objects' own memory."""

    __slots__ = ("buffers", "data", "size_bytes")

    def __init__(self, data: bytes, buffers: list[memoryview]) -> None:
        self.data = data
        self.buffers = buffers
        self.size_bytes = len(data) + sum(buffer.nbytes for buffer in buffers)

    @property
    def is_large(self) -> bool:
        """It is to be attached: it has no place in a frame."""
        return self.size_bytes >= ATTACH_BYTES

    @property
    def sizes(self) -> tuple[int, ...]:
        """As `Attached` says them."""
        return (len(self.data), *(buffer.nbytes for buffer in self.buffers))

    def inline(self) -> tuple[bytes, tuple[bytes, ...]]:
        """As a frame takes it."""
        return self.data, tuple(map(bytes, self.buffers))


def plain_dumps(value: Any, buffers: Buffers) -> bytes:
    return pickle.dumps(value, 5, buffer_callback=buffers)


def by_value_dumps(value: Any, buffers: Buffers) -> bytes:
    """cloudpickle's."""
    cloudpickle: Any = import_module("cloudpickle")  # untyped, and slow to import
    data: bytes = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers)
    return data


def dump_list(values: list[Any], dumps: Dumps | None = None) -> Pickled:
    """Raises whatever pickling `values` does. `dumps`: in place of both picklers."""
    if dumps is not None:
        return _dumped(values, dumps)
    try:
        return _dumped(values, plain_dumps)
    except MemoryError:
        raise
    except Exception:
        return _dumped(values, by_value_dumps)  # which says what is wrong, if it does not go either


def _dumped(values: list[Any], dumps: Dumps) -> Pickled:
    buffers: list[memoryview] = []

    def in_pickle(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not in one piece
            return True
        if raw.nbytes < CELL_BUFFER_BYTES_MIN:
            return True
        buffers.append(raw)
        return False

    return Pickled(dumps(values, in_pickle), buffers)


def load_list(data: bytes | memoryview, buffers: Sequence[bytes | memoryview]) -> list[Any]:
    """The list of a pickle. Raises whatever unpickling does.

    Objects of the list keep the buffers that are memoryviews, and copies of those that are bytes.
    """
    writable = [bytearray(each) if isinstance(each, bytes) else each for each in buffers]
    values: list[Any] = pickle.loads(data, buffers=writable)
    return values


class MadeAgain:
    """Pickles as an exception that is made again without its ``__init__``, where that is the user's own: the
    pickle of an exception calls it with `args`, which need not be what it takes."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    @staticmethod
    def is_for(error: BaseException) -> bool:
        kind = type(error)
        built_in = next(each for each in kind.__mro__ if not each.__flags__ & _HEAP_TYPE)
        return (
            isinstance(kind.__init__, types.FunctionType)
            and kind.__reduce__ is BaseException.__reduce__
            and kind.__reduce_ex__ is object.__reduce_ex__
            and built_in.__basicsize__ == BaseException.__basicsize__  # it has no more than args
        )

    def __reduce__(self) -> Any:
        return make_exception, (type(self._error), self._error.args, vars(self._error))


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class that a class statement has made


def make_exception(
    kind: type[BaseException], arguments: tuple[Any, ...], attributes: dict[str, Any]
) -> BaseException:
    made = kind.__new__(kind, *arguments)
    vars(made).update(attributes)
    return made


def load_exception(failed: CallFailed) -> BaseException:
    """What a call raised; the report as an error of cortex's where that cannot be made again here."""
    if failed.pickled:
        try:
            error = pickle.loads(failed.pickled)
        except (Exception, SystemExit):  # a class with another __init__ than its args: the words are there
            error = None
        if isinstance(error, BaseException):
            return error
    return from_report(failed.error)
