"""The parts of the run file's grammar (`run_format`) that are NumPy's and Arrow's: index and schemas."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cortex.errors import InternalError
from cortex.storage.run_format import corrupt

ENTRY: Final = np.dtype(
    [
        ("partition", "<u4"),
        ("rows", "<u4"),
        ("offset", "<u8"),
        ("stored_bytes", "<u4"),
        ("raw_bytes", "<u4"),
        ("first_hash", "<u8"),
        ("last_hash", "<u8"),
        ("checksum", "<u8"),
    ]
)
"""An entry of the index; `run_format.ENTRY_PACKED` is the same bytes, packed one by one, at which NumPy
is slow."""
Entries = NDArray[np.void]
"""Rows of `ENTRY`."""


def check_schema(schema: pa.Schema) -> None:
    """Raise InternalError for a type that a block cannot hold: the collector should have cast it."""
    for field in schema:
        _check_type(field.name, field.type)


def _check_type(column: str, kind: pa.DataType) -> None:
    types = pa.types
    if types.is_dictionary(kind) or types.is_string_view(kind) or types.is_binary_view(kind):
        raise InternalError(
            f"column {column!r} of type {kind} cannot be spilled",
            cure="cast it to its plain type before it is collected",
        )
    if isinstance(kind, pa.BaseExtensionType):
        _check_type(column, kind.storage_type)
    for i in range(kind.num_fields):
        _check_type(column, kind.field(i).type)


def encode_schema(schema: pa.Schema) -> bytes:
    return bytes(schema.serialize())


def decode_schema(data: bytes, path: str) -> pa.Schema:
    try:
        return pa.ipc.read_schema(pa.py_buffer(data))
    except (pa.ArrowInvalid, OSError) as error:
        raise corrupt(path, f"a run's schema cannot be read: {error}") from error
