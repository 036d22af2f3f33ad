"""Sessions of visitors in a web server's access log (combined log format).

A visitor's requests less than half an hour apart are one session. Requests reach reduce in input order,
and a log is written in time order, so a session is counted while its requests stream by: a visitor with
more requests than fit in memory is no trouble.

python sessions.py 'access.log*' -o sessions/
"""

import re
from datetime import UTC, datetime, timedelta

import cortex

LINE = re.compile(r'(\S+) \S+ \S+ \[([^\]]+)\] "(?:[A-Z]+) (\S+)')
GAP = timedelta(minutes=30)


class Sessions(cortex.MapReduceJob):
    """Sessions of visitors in an access log: visitor, and "start, seconds, requests" of each."""

    input_format = "text"

    def map(self, line):
        found = LINE.match(line)
        if found is None:
            self.counter("lines", "not understood").add(1)
            return
        visitor, time, _ = found.groups()
        yield visitor, datetime.strptime(time, "%d/%b/%Y:%H:%M:%S %z").timestamp()

    def reduce(self, visitor, times):
        start = last = next(times)
        requests = 1
        for time in times:
            if time - last > GAP.total_seconds():
                yield visitor, describe(start, last, requests)
                start, requests = time, 0
            last = time
            requests += 1
        yield visitor, describe(start, last, requests)


def describe(start, last, requests):
    return f"{datetime.fromtimestamp(start, UTC).isoformat()}, {last - start:.0f}, {requests}"


if __name__ == "__main__":
    Sessions.main()
