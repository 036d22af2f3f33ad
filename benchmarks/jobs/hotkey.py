"""Every value of a group reaches `reduce` as a stream: one group holds most of the input's bytes."""

import cortex


class HotKey(cortex.MapReduceJob):
    input_format = "csv"
    output_format = "csv"

    def map(self, row):
        yield row.key, (row.value, row.text)

    def reduce(self, key, values):
        rows = total = letters = 0
        for value, text in values:
            rows += 1
            total += value
            letters += len(text)
        yield key, f"{rows} {total} {letters}"
