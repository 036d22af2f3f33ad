"""What every generator is: rows in blocks of bytes, and the answer once the last block is made."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

BLOCK_ROWS = 1 << 17


class Dataset(abc.ABC):
    """`rows` rows of `seed`. Make the blocks once, in order; then ask for the answer."""

    header: ClassVar[bytes] = b""
    row_bytes: ClassVar[float]
    """About how long a row is, to turn a wished size into rows."""
    suffix: ClassVar[str] = ".csv"

    def __init__(self, rows: int, seed: int = 0) -> None:
        self.rows = rows
        self.seed = seed

    @abc.abstractmethod
    def block(self, first: int, count: int) -> bytes | memoryview:
        """Rows [first, first + count) as they stand in the file; counts them in the answer."""

    @abc.abstractmethod
    def answer(self) -> dict[str, Any]:
        """What is known of the rows made so far: plain data, integers exact."""

    def blocks(self) -> Iterator[bytes | memoryview]:
        if self.header:
            yield self.header
        for first in range(0, self.rows, BLOCK_ROWS):
            yield self.block(first, min(BLOCK_ROWS, self.rows - first))

    def write(self, path: str) -> dict[str, Any]:
        with open(path, "wb", buffering=0) as file:
            for block in self.blocks():
                file.write(block)
        return self.answer()


def join_columns(columns: list[Any]) -> memoryview:
    """The bytes of all rows: string arrays (or a constant str) joined element by element.

    A string array's values lie end to end in one buffer: that buffer is the file.
    """
    joined = pc.binary_join_element_wise(*columns, "")
    return _values(joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined)


def _values(array: Any) -> memoryview:
    offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1]
    return memoryview(array.buffers()[2])[int(offsets[0]) : int(offsets[-1])]


def digits(numbers: NDArray[Any]) -> Any:
    """Integers as a string array."""
    return pc.cast(pa.array(numbers), pa.string())


def choose(choices: list[str], index: NDArray[Any]) -> Any:
    """``choices[index]`` as a string array."""
    return pa.array(choices).take(pa.array(index))


def two_decimals(limit: int) -> list[str]:
    """ "0.00", "0.01" ... for every number of hundredths below `limit`."""
    return [f"{n // 100}.{n % 100:02d}" for n in range(limit)]
