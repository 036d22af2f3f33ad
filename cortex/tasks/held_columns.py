"""Columns that user code returned, as runs and output parts hold them.

Neither holds dictionaries or views (why: `cortex.storage.run_format`), and some of Arrow's types cannot be
sorted or cut. Dictionaries and views become plain columns, also those inside lists, structs and maps; what
cannot be held is a ColumnError that names the column.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.types as pt

from cortex.errors import ColumnError


def held_batch(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with each column as `held` gives it."""
    columns = [held(name, column) for name, column in zip(batch.schema.names, batch.columns)]
    if all(new is old for new, old in zip(columns, batch.columns)):
        return batch
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def held(name: str, column: pa.Array) -> pa.Array:
    """The same values in a type that can be held. Raises ColumnError; `name` is for it."""
    wanted = _held_type(column.type)
    if wanted == column.type:
        return column
    plain = column.dictionary_decode() if pt.is_dictionary(column.type) else column
    try:
        if wanted is not None:
            return plain if plain.type == wanted else plain.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    raise ColumnError(
        f"column {name!r} is of type {column.type}, which can be neither sorted nor written",
        cure="return plain columns, or lists and structs of them, for example by casting the column",
    )


def _held_type(kind: pa.DataType) -> pa.DataType | None:
    """What a column of this type is held as; None if it cannot be."""
    if pt.is_dictionary(kind):
        return _held_type(kind.value_type)
    if pt.is_string_view(kind):
        return pa.large_string()
    if pt.is_binary_view(kind):
        return pa.large_binary()
    if isinstance(kind, pa.BaseExtensionType):
        return kind if _held_type(kind.storage_type) == kind.storage_type else None
    children = [kind.field(i) for i in range(kind.num_fields)]
    types = [_held_type(child.type) for child in children]
    if any(plain is None for plain in types) or pt.is_run_end_encoded(kind):
        return None
    if types == [child.type for child in children]:
        return kind
    fields = [child.with_type(plain) for child, plain in zip(children, types)]
    if pt.is_struct(kind):
        return pa.struct(fields)
    if pt.is_map(kind):
        key, item = fields[0].type
        return pa.map_(key, item, keys_sorted=kind.keys_sorted)
    if pt.is_fixed_size_list(kind):
        return pa.list_(fields[0], kind.list_size)
    if pt.is_list(kind) or pt.is_large_list(kind):
        return pa.list_(fields[0]) if pt.is_list(kind) else pa.large_list(fields[0])
    return None
