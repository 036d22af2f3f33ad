"""Which lines hold a word: an index of tab separated ``name<TAB>text`` lines.

python inverted_index.py pages.tsv -o index/ --output-format jsonl
"""

import re

import cortex

WORD = re.compile(r"\w+")


class InvertedIndex(cortex.MapReduceJob):
    """For every word, the names of the texts that hold it, in input order."""

    input_format = "tsv"
    columns = {"name": "string", "text": "string"}

    def map(self, row):
        for word in set(WORD.findall((row.text or "").lower())):
            yield word, row.name

    def reduce(self, word, names):
        yield word, " ".join(dict.fromkeys(names))


if __name__ == "__main__":
    InvertedIndex.main()
