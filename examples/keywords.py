"""Count words, but for those in a list: see keywords.yaml, which names the list and a setting."""

import os
import re

import cortex

WORD = re.compile(r"[^\W\d_]+")  # letters only


class Keywords(cortex.MapReduceJob):
    """Count words that are long enough and not left out."""

    combine = sum

    def setup(self):
        with open(self.file("stopwords"), encoding="utf-8") as file:
            self.left_out = set(file.read().split())
        self.shortest = int(os.environ["SHORTEST"])

    def map(self, line):
        for word in WORD.findall(line.lower()):
            if len(word) >= self.shortest and word not in self.left_out:
                yield word, 1
