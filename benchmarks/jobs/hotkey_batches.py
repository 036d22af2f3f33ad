"""The answer of hotkey.py in batches: each holds whole rows of some groups, and a group may span many."""

import pyarrow as pa
import pyarrow.compute as pc

import cortex


class HotKeyBatches(cortex.MapReduceJob):
    key = "key"

    def map_batch(self, batch):
        return batch

    def reduce_batch(self, batches):
        key, found = None, [0, 0, 0]
        for batch in batches:
            runs = pc.run_end_encode(batch["key"])
            first = 0
            for name, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist()):
                if name != key:
                    if key is not None:
                        yield row(key, found)
                    key, found = name, [0, 0, 0]
                part = batch.slice(first, end - first)
                found[0] += len(part)
                found[1] += pc.sum(part["value"]).as_py()
                found[2] += pc.sum(pc.utf8_length(part["text"])).as_py()
                first = end
        if key is not None:
            yield row(key, found)


def row(key, found):
    return pa.RecordBatch.from_pydict({"key": [key], "value": [" ".join(map(str, found))]})
