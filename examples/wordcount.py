"""Count words in text files.

python wordcount.py 'docs/*.txt'
python wordcount.py 'docs/*.txt' -o counts/ --memory 512MB
"""

import re

import cortex

WORD = re.compile(r"[^\W\d_]+")  # letters only


class WordCount(cortex.MapReduceJob):
    """Count words in text files."""

    input_format = "text"
    combine = sum

    def map(self, line):
        for word in WORD.findall(line.lower()):
            yield word, 1


if __name__ == "__main__":
    WordCount.main()
