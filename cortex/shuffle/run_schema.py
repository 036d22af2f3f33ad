"""The columns of a run: hash, key columns, payload columns; and what its schema's metadata says.

    __hash: uint64        the row's hash; rows are sorted by (hash, key, arrival)
    k0 .. kn              key columns
    payload               named by the layout's owner

Metadata: ``cortex.keys`` is the number of key columns, ``cortex.key`` the key type of row-form keys
("" for key columns of a table), and ``cortex.payload`` says how the payload is read: ``rows`` (columns
as they are), ``values:<tag>`` (one column ``value``, see `cortex.shuffle.values`) or ``states:<what>``
(partial states of aggregates over `what`). ``cortex.placed``: see `Layout.placed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cortex.kernels.ordering import Ordering, order_by_hash

HASH = "__hash"
ROWS, STATES, VALUES = "rows", "states", "values"


@dataclass(frozen=True)
class Layout:
    """What the columns of a run mean. Equal layouts can stand in one run."""

    key_type: str
    key_types: tuple[pa.DataType, ...]
    payload: str
    """ROWS, ``values:<tag>`` or ``states:<what>``."""
    payload_fields: tuple[tuple[str, pa.DataType], ...]
    placed: bool = False
    """True: a user's partition function moved the hashes, so that equal hashes say little of keys."""

    @property
    def keys(self) -> int:
        return len(self.key_types)

    @property
    def columns(self) -> int:
        return 1 + self.keys + len(self.payload_fields)

    @property
    def value_tag(self) -> str:
        return self.payload.partition(":")[2]

    def schema(self) -> pa.Schema:
        fields = [pa.field(HASH, pa.uint64(), nullable=False)]
        fields += [pa.field(f"k{i}", kind) for i, kind in enumerate(self.key_types)]
        fields += [pa.field(name, kind) for name, kind in self.payload_fields]
        described = {
            "cortex.key": self.key_type,
            "cortex.keys": str(self.keys),
            "cortex.payload": self.payload,
        }
        if self.placed:
            described["cortex.placed"] = "1"
        return pa.schema(fields, metadata=described)

    def batch(
        self, hashes: NDArray[np.uint64], keys: Sequence[pa.Array], payload: Sequence[pa.Array]
    ) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([pa.array(hashes), *keys, *payload], schema=self.schema())

    def order(self, hashes: NDArray[np.uint64], keys: Sequence[pa.Array]) -> Ordering:
        """The (hash, key, row) order of rows of this layout."""
        return order_by_hash(hashes, keys, other_hash=self.placed)

    def order_batch(self, batch: pa.RecordBatch) -> Ordering:
        """The same, of a batch with these columns."""
        return self.order(hashes_of(batch), batch.columns[1 : 1 + self.keys])


def layout_of(schema: pa.Schema) -> Layout:
    """The layout a run was written with."""
    metadata = schema.metadata or {}
    count = int(metadata[b"cortex.keys"])
    fields = [schema.field(i) for i in range(len(schema.names))]
    return Layout(
        key_type=metadata[b"cortex.key"].decode(),
        key_types=tuple(f.type for f in fields[1 : count + 1]),
        payload=metadata[b"cortex.payload"].decode(),
        payload_fields=tuple((f.name, f.type) for f in fields[count + 1 :]),
        placed=b"cortex.placed" in metadata,
    )


def hashes_of(batch: pa.RecordBatch) -> NDArray[np.uint64]:
    """The hash column, without a copy."""
    values: NDArray[np.uint64] = batch.column(0).to_numpy(zero_copy_only=True)
    return values
