"""The most frequent referrers of an access log, by a job and three lines of Python after it.

python top_referrers.py access.log
"""

import heapq
import re
import sys

import cortex

REFERRER = re.compile(r'"[^"]*" \d+ \S+ "([^"]*)"')


class Referrers(cortex.MapReduceJob):
    """Count the referrers of an access log (combined log format)."""

    input_format = "text"
    combine = sum

    def map(self, line):
        found = REFERRER.search(line)
        if found and found[1] != "-":
            yield found[1], 1


if __name__ == "__main__":
    counts = Referrers(input=sys.argv[1:]).run()
    for referrer, count in heapq.nlargest(20, counts, key=lambda pair: (pair[1], pair[0])):
        print(f"{count:8} {referrer}")
