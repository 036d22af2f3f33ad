"""Word count one line at a time, with a folded combine."""

import cortex


class WordCount(cortex.MapReduceJob):
    input_format = "text"
    output_format = "csv"
    combine = sum

    def map(self, line):
        for word in line.split():
            yield word, 1
