"""What a Python person writes: a pool, a byte range and a dict for each process, merged at the end.

Arguments: input, output, processes, and `generator` (a mapper that yields pairs, as a MapReduce job
has) or `inline` (the counting written into the loop: no mapper any more).
"""

import csv
import itertools
import multiprocessing
import os
import sys


def lines_of(path, begin, end):
    """The lines that start in [begin, end)."""
    with open(path, "rb") as file:
        if begin:
            file.seek(begin - 1)
            begin += len(file.readline()) - 1
        at = begin
        for line in file:
            if at >= end:
                return
            at += len(line)
            yield line.decode()


def mapper(line):
    for word in line.split():
        yield word, 1


def count_generator(job):
    counts = {}
    get = counts.get
    for line in lines_of(*job):
        for word, one in mapper(line):
            counts[word] = get(word, 0) + one
    return counts


def count_inline(job):
    counts = {}
    get = counts.get
    for line in lines_of(*job):
        for word in line.split():
            counts[word] = get(word, 0) + 1
    return counts


def main(path, output, processes, form):
    size = os.path.getsize(path)
    edges = [size * i // processes for i in range(processes + 1)]
    jobs = [(path, begin, end) for begin, end in itertools.pairwise(edges)]
    count = count_generator if form == "generator" else count_inline
    total = {}
    get = total.get
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for counts in pool.imap_unordered(count, jobs):
            if not total:
                total, get = counts, counts.get
                continue
            for word, n in counts.items():
                total[word] = get(word, 0) + n
    with open(output, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "value"])
        writer.writerows(total.items())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
