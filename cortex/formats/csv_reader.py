"""CSV and TSV records as batches: blocks cut at record ends here, parsed by pyarrow.

Only the wanted columns are converted, each to its planned type. A quote that is never closed, a record
with too many or too few fields and a value that does not fit its column's type are `InputError`s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from cortex.errors import InputError, InternalError
from cortex.job.plan import IN, UNKNOWN, InputFile, Split
from cortex.job.spec import CsvDialect
from cortex.job.types import arrow_type
from cortex.limits import BATCH_ROWS_MAX

from .blocks import TAIL_BYTES, Block, record_blocks
from .csv_parse import BlockParser
from .csv_records import Grammar, Stretch, first_record_start
from .input_bytes import Opener, open_local
from .sources import line_text, open_source


class CsvReader:
    """Iterates over one split's record batches."""

    def __init__(
        self,
        file: InputFile,
        split: Split,
        columns: Sequence[tuple[str, str]],
        *,
        block_bytes: int,
        open_input: Opener = open_local,
    ) -> None:
        if split.start_state == UNKNOWN:
            raise InternalError(
                "a CSV split was started before its start state was known",
                details={"file": file.path, "offset": split.offset},
            )
        self._file = file
        self._split = split
        self._block_bytes = block_bytes
        self._dialect = file.dialect or CsvDialect()
        self._grammar = Grammar(self._dialect)
        names = [name for name, _ in file.columns]
        self._one_column = len(names) == 1
        types = {name: arrow_type(type_) for name, type_ in columns}
        self._schema = pa.schema(list(types.items()))
        self._parser = BlockParser(file.path, self._dialect, names, types)
        self._open_input = open_input
        self._source = open_source(file, open_input)
        self._end = None if file.compression else split.offset + split.length
        self._start = split.offset
        self._block_start = 0
        self._block_size = 0
        self._row = 0

    @property
    def bytes_read(self) -> int:
        if self._end is None:
            return self._source.bytes_read
        return max(0, min(self._block_start + self._block_size, self._end) - self._start)

    def close(self) -> None:
        self._source.close()

    def _cuts(self, data: bytes | bytearray, count: int, final: bool) -> Stretch:
        return Stretch(self._grammar, data, count, final=final)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        source, split = self._source, self._split
        if self._end is None:
            start = self._file.data_start
        else:
            source.expect(split.offset - 1, self._end + TAIL_BYTES)
            start = first_record_start(source, self._grammar, split.offset, split.start_state, self._end)
        for block in record_blocks(source, start, self._end, self._block_bytes, self._cuts):
            self._block_start, self._block_size, self._row = block.position, block.size, 0
            if block.unfinished:
                self._check_closed(block)
            table = self._parser.parse(block.data, 0, block.size, position=block.position)
            next_row = 0
            for batch in table.to_batches(max_chunksize=BATCH_ROWS_MAX):
                if batch.num_rows:
                    self._row, next_row = next_row, next_row + batch.num_rows
                    yield batch.cast(self._schema) if batch.schema != self._schema else batch
        source.finish()

    def _check_closed(self, block: Block) -> None:
        """InputError if the file ends inside a quoted field (pyarrow would take the field as it is)."""
        cuts = block.cuts
        assert isinstance(cuts, Stretch)
        if cuts.end_state() == IN:
            low = cuts.last_end()
            raise InputError(
                "the file ends inside a quoted field: its quote is never closed",
                details={
                    "file": self._file.path,
                    "offset": block.position + low,
                    "line": line_text(memoryview(block.data)[low : block.size]),
                },
                cure="close the quote; if quotes in this file mean nothing, set quote: ''",
            )

    def describe(self, position: int) -> tuple[int, str]:
        """(offset, text) of the record at `position` in the batch yielded last."""
        source = open_source(self._file, self._open_input)
        try:
            data, _, _ = source.window(self._block_start, self._block_size)
            block = bytes(memoryview(data)[: self._block_size])
        finally:
            source.close()
        ends = Stretch(self._grammar, block, len(block), final=True).record_ends()
        starts = np.concatenate(([0], ends))
        starts = starts[starts < len(block)]
        if not self._one_column:  # blank lines are no rows there
            first = np.frombuffer(block, dtype=np.uint8)[starts]
            starts = starts[(first != 10) & (first != 13)]
        low = int(starts[self._row + position])
        after = ends[np.searchsorted(ends, low + 1) :]
        high = int(after[0]) if len(after) else len(block)
        return self._block_start + low, line_text(block[low:high])
