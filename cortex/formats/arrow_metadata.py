"""Where an Arrow IPC file's record batches lie, and the buffers in them.

pyarrow does not say, so the footer and the messages are read here: flatbuffers (tables with a vtable of field
offsets, all little-endian). Raises ValueError for what is damaged, InputError for another format.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from cortex.errors import InputError

from .input_bytes import InputBytes

_MAGIC: Final = b"ARROW1"
_FOOTER_SCHEMA, _FOOTER_DICTIONARIES, _FOOTER_RECORD_BATCHES = 1, 2, 3  # fields, by number, of its tables
_SCHEMA_ENDIANNESS: Final = 0
_MESSAGE_HEADER_TYPE, _MESSAGE_HEADER, _MESSAGE_BODY_BYTES = 1, 2, 3
_DICTIONARY_BATCH: Final = 2  # a header's type
_DICTIONARY_DATA: Final = 1
_BATCH_LENGTH, _BATCH_NODES, _BATCH_BUFFERS, _BATCH_COMPRESSION, _BATCH_VARIADIC = 0, 1, 2, 3, 4
_COMPRESSION_CODEC: Final = 0
_SHRUNK_MOST: Final = {0: 256, 1: 1 << 16}  # times at most, by LZ4 and by ZSTD


class Block(NamedTuple):
    """A record batch's message in the file: its metadata, and its body after them."""

    offset: int
    metadata_bytes: int
    body_bytes: int


class Footer(NamedTuple):
    batches: list[Block]
    dictionaries: list[Block]
    little_endian: bool


class Batch(NamedTuple):
    """A record batch's metadata. Buffers are (offset in the file, bytes), and lie in the body."""

    rows: int
    nodes: list[tuple[int, int]]
    """Of every field, nested ones after their parents: (length, nulls)."""
    buffers: list[tuple[int, int]]
    codec: int | None
    """None: not compressed."""
    variadic: list[int]
    """How many buffers each column of views has beyond its own."""


def _number(data: bytes, form: str, position: int) -> int:
    if not 0 <= position <= len(data) - struct.calcsize(form):
        raise ValueError("its metadata point at what is outside of them")
    return int(struct.unpack_from(form, data, position)[0])


def _field(data: bytes, table: int, number: int) -> int:
    """Position of a table's field, or 0 if it has its default."""
    vtable = table - _number(data, "<i", table)
    if 4 + 2 * number >= _number(data, "<H", vtable):
        return 0
    offset = _number(data, "<H", vtable + 4 + 2 * number)
    return table + offset if offset else 0


def _follow(data: bytes, position: int) -> int:
    return position + _number(data, "<I", position)


def _vector(data: bytes, table: int, number: int, item: str) -> list[tuple[int, ...]]:
    """The structs of a table's vector, unpacked."""
    field = _field(data, table, number)
    if not field:
        return []
    vector = _follow(data, field)
    count = _number(data, "<I", vector)
    size = struct.calcsize(item)
    if vector + 4 + count * size > len(data):
        raise ValueError("a list in its metadata is longer than they are")
    return list(struct.iter_unpack(item, data[vector + 4 : vector + 4 + count * size]))


def read_footer(data: InputBytes) -> Footer:
    path, size = data.file.path, data.file.size_bytes
    if data.read(6, 0) != _MAGIC:
        raise InputError(
            "not an Arrow IPC file: it does not begin with ARROW1",
            details={"file": path},
            cure="write it in the file format (pyarrow.ipc.new_file), not as a stream",
        )
    end = data.read(10, size - 10) if size >= 22 else b""
    if end[4:] != _MAGIC:
        raise InputError(
            "not a whole Arrow IPC file: its footer is missing",
            details={"file": path, "size": f"{size} bytes"},
            cure="copy or make the file again",
        )
    length = struct.unpack("<i", end[:4])[0]
    if not 0 < length <= size - 10:
        raise ValueError(f"its footer cannot have {length} bytes")
    footer = data.read(length, size - 10 - length)
    table = _follow(footer, 0)
    batches, dictionaries = (
        [Block(*block) for block in _vector(footer, table, number, "<qi4xq")]
        for number in (_FOOTER_RECORD_BATCHES, _FOOTER_DICTIONARIES)
    )
    for block in (*batches, *dictionaries):
        if min(block) < 0 or sum(block) > size:
            raise ValueError(f"its footer names a batch at {block.offset} that is not all in the file")
    schema = _follow(footer, _field(footer, table, _FOOTER_SCHEMA))
    endianness = _field(footer, schema, _SCHEMA_ENDIANNESS)
    little = not endianness or _number(footer, "<h", endianness) == 0
    return Footer(batches, dictionaries, little)


def _header(data: InputBytes, block: Block) -> tuple[bytes, int]:
    """A message, and where its record batch's table is in it."""
    message = data.read(block.metadata_bytes, block.offset)
    message = message[8 if message[:4] == b"\xff\xff\xff\xff" else 4 :]  # the continuation marker is newer
    root = _follow(message, 0)
    table = _follow(message, _field(message, root, _MESSAGE_HEADER))
    body = _field(message, root, _MESSAGE_BODY_BYTES)
    if body and _number(message, "<q", body) > block.body_bytes:
        raise ValueError(f"the batch at {block.offset} says that it is larger than the footer says")
    kind = _field(message, root, _MESSAGE_HEADER_TYPE)
    if kind and _number(message, "<B", kind) == _DICTIONARY_BATCH:
        table = _follow(message, _field(message, table, _DICTIONARY_DATA))
    return message, table


def _rows(message: bytes, table: int) -> int:
    length = _field(message, table, _BATCH_LENGTH)
    return _number(message, "<q", length) if length else 0


def read_rows(data: InputBytes, block: Block) -> int:
    """How many rows a record batch has."""
    return _rows(*_header(data, block))


def read_batch(data: InputBytes, block: Block) -> Batch:
    """The metadata of a record batch, or of the one that a dictionary is."""
    message, table = _header(data, block)
    body = block.offset + block.metadata_bytes
    buffers = []
    for offset, length in _vector(message, table, _BATCH_BUFFERS, "<qq"):
        if min(offset, length) < 0 or offset + length > block.body_bytes:
            raise ValueError(f"a buffer of the batch at {block.offset} is not all in its body")
        buffers.append((body + offset, length))
    compression = _field(message, table, _BATCH_COMPRESSION)
    codec: int | None = None
    if compression:
        found = _field(message, _follow(message, compression), _COMPRESSION_CODEC)
        codec = _number(message, "<b", found) if found else 0
    return Batch(
        _rows(message, table),
        [(length, nulls) for length, nulls in _vector(message, table, _BATCH_NODES, "<qq")],
        buffers,
        codec,
        [count for (count,) in _vector(message, table, _BATCH_VARIADIC, "<q")],
    )


def check_sizes(data: InputBytes, block: Block) -> None:
    """ValueError if the batch asks for more memory than what is in the file can ever take."""
    batch = read_batch(data, block)
    if batch.codec is None:
        return
    for offset, length in batch.buffers:
        if length < 8:
            continue
        size = _number(data.read(8, offset), "<q", 0)  # -1: as it is
        if not -1 <= size <= length * _SHRUNK_MOST.get(batch.codec, 1 << 62):
            raise ValueError(f"the buffer at {offset} ({length} bytes) says it decompresses to {size} bytes")
