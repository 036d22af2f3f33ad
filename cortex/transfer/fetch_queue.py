"""What to fetch next, from whom, and when to give up. Pure: events in, instructions out; no clock, no I/O.

Every segment wanted is answered once: `landed` is told to the queue, or the queue says `GiveUp`.
Segments of one holder are asked for in the order they were wanted. A holder gets a second connection
only when the first has as much to do as it may, and the holder with most bytes waiting is next when
connections are short; one that is idle is closed for it.

A failure is the holder's (no connection, one that broke or stood still) or the segment's (it came
damaged, or was the one being sent when the connection broke: it is asked for last then, so that what
only it brings about is its own). A holder that fails tries_max times without a segment in between is
given up with all that is waited for from it, so that its loss is found once, not segment by segment; a
segment that fails as often, alone. A refusal is final at once if what was asked for is lost (fault LOST),
else it may be had later. Whatever went wrong, the holder rests first, longer each time.

Of a job that combines, segments of one holder and partition are asked for together, in map order: the
holder may answer several with one, combined. They then land together or fail together, and after a failure
each is asked for alone. What is wanted ahead may be put off by its holder, until more of that partition is
wanted of it, or this one no longer ahead: then nothing is put off any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from cortex.errors import CortexError, Fault, FetchFailed
from cortex.limits import (
    FETCH_BACKOFF_FIRST_S,
    FETCH_BACKOFF_S_MAX,
    FETCH_BATCH_BYTES,
    FETCH_BYTES_MAX,
    FETCH_CONNECT_S_MAX,
    FETCH_CONNECTIONS_MAX,
    FETCH_CONNECTIONS_PER_HOLDER,
    FETCH_IDLE_S,
    FETCH_LOOKED_AT_MAX,
    FETCH_REQUESTS_AHEAD,
    FETCH_STALL_S,
    FETCH_TOGETHER_MAX,
    FETCH_TRIES_MAX,
    FETCH_WRITERS,
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A segment to fetch. `size_bytes` is what is known of its size, or 0: for the order only.

    `combines`: it may be had together with others, combined. `ahead`: nobody waits for it yet, so it may be
    put off until somebody does; it is then wanted again, and no longer ahead.
    """

    job: str
    holder: str
    attempt: str
    partition: int
    size_bytes: int = 0
    combines: bool = False
    ahead: bool = False

    @property
    def key(self) -> tuple[str, int]:
        return self.attempt, self.partition


@dataclass(frozen=True, slots=True)
class Connect:
    connection: int
    holder: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask for `wanted`, and for `others` under the numbers that follow `request`."""

    connection: int
    request: int
    wanted: Wanted
    others: tuple[Wanted, ...] = ()
    ahead: bool = False


@dataclass(frozen=True, slots=True)
class Close:
    """Forget the connection: nothing more is to be told of it, nor of what was asked on it."""

    connection: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    wanted: Wanted
    error: CortexError


Instruction = Connect | Ask | Close | GiveUp


@dataclass(frozen=True)
class FetchPolicy:
    """The limits of one node's fetching; the last five are the fetcher's, the others the queue's.
    `requests_ahead` is when a connection has enough: what is asked for together may be more."""

    connections_max: int = FETCH_CONNECTIONS_MAX
    connections_per_holder: int = FETCH_CONNECTIONS_PER_HOLDER
    requests_ahead: int = FETCH_REQUESTS_AHEAD
    together_max: int = FETCH_TOGETHER_MAX
    looked_at_max: int = FETCH_LOOKED_AT_MAX
    tries_max: int = FETCH_TRIES_MAX
    backoff_first_s: float = FETCH_BACKOFF_FIRST_S
    backoff_s_max: float = FETCH_BACKOFF_S_MAX
    idle_s: float = FETCH_IDLE_S
    connect_s_max: float = FETCH_CONNECT_S_MAX
    stall_s: float = FETCH_STALL_S
    bytes_max: int = FETCH_BYTES_MAX
    batch_bytes: int = FETCH_BATCH_BYTES
    writers: int = FETCH_WRITERS


@dataclass(eq=False, slots=True)
class _Segment:
    wanted: Wanted
    holder: _Holder
    ahead: bool
    tries: int = 0
    """Failures of its own."""
    alone: bool = False
    """Not to be had combined: that went wrong."""


@dataclass(eq=False, slots=True)
class _Connection:
    number: int
    holder: _Holder
    open: bool = False
    asked: dict[int, _Segment] = field(default_factory=dict)
    """By request, in the order of the answers."""
    idle_since: float = 0.0


@dataclass(eq=False, slots=True)
class _Holder:
    name: str
    waiting: deque[_Segment] = field(default_factory=deque)
    waiting_bytes: int = 0
    put_off: dict[tuple[str, int], dict[tuple[str, int], _Segment]] = field(default_factory=dict)
    """(Job, partition) -> segments that it will give later, by key."""
    connections: list[_Connection] = field(default_factory=list)
    failures: int = 0
    """In a row."""
    rests_until: float = 0.0


class FetchQueue:
    """See the module. Every method that takes `now` gives the instructions to carry out, in order.

    `jitter` gives numbers from 0 to 1: nodes that lost the same peer do not all come back at once.
    Requests are numbered anew each time a segment is asked for; what is told of a number that is not
    waited for any more is ignored.
    """

    def __init__(self, jitter: Callable[[], float], policy: FetchPolicy | None = None) -> None:
        self._jitter = jitter
        self._policy = policy or FetchPolicy()
        self._segments: dict[tuple[str, int], _Segment] = {}
        self._holders: dict[str, _Holder] = {}
        self._connections: dict[int, _Connection] = {}
        self._asked: dict[int, _Connection] = {}
        """Requests whose bytes are not all there."""
        self._landing: dict[int, list[_Segment]] = {}
        """Requests whose bytes are, but not yet the file: of one segment, or of several combined."""
        self._last_connection = 0
        self._last_request = 0

    @property
    def busy(self) -> bool:
        """True while anything is wanted or connected: `tick` is then due from time to time."""
        return bool(self._segments or self._connections)

    # --- what is wanted ---

    def add(self, wanted: Iterable[Wanted], now: float) -> list[Instruction]:
        """Segments to fetch. One that is already wanted is not fetched twice."""
        touched: dict[str, _Holder] = {}
        for each in wanted:
            known = self._segments.get(each.key)
            if known is not None:
                if not each.ahead and known.ahead:
                    known.ahead = False
                    self._take_up(known)
                    touched[known.holder.name] = known.holder
                continue
            holder = self._holders.get(each.holder)
            if holder is None:
                holder = self._holders[each.holder] = _Holder(each.holder)
            segment = self._segments[each.key] = _Segment(each, holder, each.ahead)
            for other in holder.put_off.pop((each.job, each.partition), {}).values():
                self._wait(other)
            self._wait(segment)
            touched[each.holder] = holder
        out: list[Instruction] = []
        for holder in touched.values():
            self._ask(holder, now, out)
        self._connect(now, out)
        return out

    def cancel(self, job: str, now: float) -> list[Instruction]:
        """Forget all segments of a job. A connection on which one was asked for is closed: its bytes
        would have to be read to come to what follows."""
        out: list[Instruction] = []
        for connection in list(self._connections.values()):
            if any(segment.wanted.job == job for segment in connection.asked.values()):
                self._drop(connection)
                out.append(Close(connection.number))
        for holder in list(self._holders.values()):
            kept = [segment for segment in holder.waiting if segment.wanted.job != job]
            holder.waiting.clear()
            holder.waiting_bytes = 0
            for segment in kept:
                self._wait(segment)
            for key in [key for key in holder.put_off if key[0] == job]:
                del holder.put_off[key]
            self._forget_idle(holder)
        self._landing = {n: some for n, some in self._landing.items() if some[0].wanted.job != job}
        self._segments = {key: each for key, each in self._segments.items() if each.wanted.job != job}
        return self._next(now, out)

    def moved(self, holder: str, now: float) -> list[Instruction]:
        """The holder has another address, where nothing has failed yet."""
        found = self._holders.get(holder)
        if found is None:
            return []
        found.failures, found.rests_until = 0, now
        return self._next(now, [])

    # --- what happened to a connection ---

    def connected(self, connection: int, now: float) -> list[Instruction]:
        found = self._connections.get(connection)
        if found is None:
            return []
        found.open = True
        found.idle_since = now
        return self._next(now, [], found.holder)

    def disconnected(self, connection: int, error: CortexError, now: float) -> list[Instruction]:
        """A connection could not be made, has ended, or had to be cut off."""
        found = self._connections.get(connection)
        if found is None:
            return []
        holder, out = found.holder, list[Instruction]()
        blamed = next(iter(found.asked.values()), None)
        was_idle = found.open and blamed is None
        self._drop(found)
        if not was_idle:  # a server closes what it has not heard of for long: no failure
            if blamed is not None:
                holder.waiting.remove(blamed)
                holder.waiting_bytes -= blamed.wanted.size_bytes
                self._try_again(blamed, error, out)
            self._failed(holder, error, now, out)
        self._forget_idle(holder)
        return self._next(now, out)

    # --- what happened to a segment ---

    def received(self, request: int, now: float, covers: Sequence[int] = ()) -> list[Instruction]:
        """All its bytes are there, which are those of the requests `covers` as well; `landed`, `damaged` or
        `not_kept` follows."""
        connection = self._asked.pop(request, None)
        if connection is None:
            return []
        self._landing[request] = [connection.asked.pop(number) for number in (request, *covers)]
        for number in covers:
            del self._asked[number]
        connection.holder.failures = 0
        connection.idle_since = now
        return self._next(now, [], connection.holder)

    def refused(self, request: int, error: CortexError, now: float) -> list[Instruction]:
        connection = self._asked.pop(request, None)
        if connection is None:
            return []
        out: list[Instruction] = []
        segment, holder = connection.asked.pop(request), connection.holder
        holder.failures = 0
        connection.idle_since = now
        if error.fault is Fault.LOST:
            self._give_up(segment, error, out)
        else:
            self._try_again(segment, error, out)
            self._failed(holder, error, now, out)
        return self._next(now, out, holder)

    def later(self, request: int, now: float) -> list[Instruction]:
        """Its holder puts it off, as it was asked for ahead."""
        connection = self._asked.pop(request, None)
        if connection is None:
            return []
        segment, holder = connection.asked.pop(request), connection.holder
        holder.failures = 0
        connection.idle_since = now
        if segment.ahead:
            wanted = segment.wanted
            holder.put_off.setdefault((wanted.job, wanted.partition), {})[wanted.key] = segment
        else:  # somebody waits for it since it was asked for
            self._wait(segment)
        return self._next(now, [], holder)

    def landed(self, request: int) -> None:
        for segment in self._landing.pop(request, ()):
            del self._segments[segment.wanted.key]

    def damaged(self, request: int, error: CortexError, now: float) -> list[Instruction]:
        """It came whole, and is not what was asked for."""
        some = self._landing.pop(request, None)
        if some is None:
            return []
        out: list[Instruction] = []
        holder = self._holders.setdefault(some[0].holder.name, some[0].holder)
        for segment in some:
            segment.holder = holder
            segment.alone = True
            self._try_again(segment, error, out)
        self._failed(holder, error, now, out)
        self._forget_idle(holder)
        return self._next(now, out)

    def not_kept(self, request: int, error: CortexError) -> list[Instruction]:
        """This node could not write it: no fault of the holder's, and given up with `error` itself."""
        some = self._landing.pop(request, ())
        for segment in some:
            del self._segments[segment.wanted.key]
        return [GiveUp(segment.wanted, error) for segment in some]

    # --- time ---

    def tick(self, now: float) -> list[Instruction]:
        """Whoever has rested is asked again; connections idle for long are closed."""
        out: list[Instruction] = []
        for connection in list(self._connections.values()):
            if self._idle(connection) and now - connection.idle_since >= self._policy.idle_s:
                self._drop(connection)
                out.append(Close(connection.number))
                self._forget_idle(connection.holder)
        return self._next(now, out)

    # --- inside ---

    def _next(self, now: float, out: list[Instruction], holder: _Holder | None = None) -> list[Instruction]:
        for each in [holder] if holder is not None else list(self._holders.values()):
            self._ask(each, now, out)
        self._connect(now, out)
        return out

    def _ask(self, holder: _Holder, now: float, out: list[Instruction]) -> None:
        """Fill the holder's connections, the emptier first."""
        while holder.waiting and now >= holder.rests_until:
            open_ones = [each for each in holder.connections if each.open]
            connection = min(open_ones, key=lambda each: len(each.asked), default=None)
            if connection is None or len(connection.asked) >= self._policy.requests_ahead:
                return
            some = self._take_together(holder)
            first = self._last_request + 1
            for segment in some:
                holder.waiting_bytes -= segment.wanted.size_bytes
                self._last_request += 1
                connection.asked[self._last_request] = segment
                self._asked[self._last_request] = connection
            wanted = [segment.wanted for segment in some]
            out.append(Ask(connection.number, first, wanted[0], tuple(wanted[1:]), some[0].ahead))

    def _take_together(self, holder: _Holder) -> list[_Segment]:
        """The next of what waits, and what may be asked for together with it, in map order."""
        first = holder.waiting.popleft()
        if first.alone or not first.wanted.combines:
            return [first]
        some, others = [first], list[_Segment]()
        for _ in range(min(len(holder.waiting), self._policy.looked_at_max)):
            if len(some) >= self._policy.together_max:
                break
            segment = holder.waiting.popleft()
            wanted = segment.wanted
            fits = (wanted.job, wanted.partition, wanted.combines, segment.ahead, segment.alone) == (
                first.wanted.job, first.wanted.partition, True, first.ahead, False
            )  # fmt: skip
            (some if fits else others).append(segment)
        holder.waiting.extendleft(reversed(others))
        return sorted(some, key=lambda segment: map_order(segment.wanted.attempt))

    def _connect(self, now: float, out: list[Instruction]) -> None:
        """Connect to holders with more waiting than their connections take."""
        room = self._policy.connections_max - len(self._connections)
        idle = [each for each in self._connections.values() if self._idle(each)]
        if room <= 0 and not idle:
            return
        wanting = [holder for holder in self._holders.values() if self._wants_connection(holder, now)]
        wanting.sort(key=lambda holder: (len(holder.connections), -holder.waiting_bytes))
        for holder in wanting:
            if room <= 0:
                if not idle:
                    return
                closed = idle.pop(0)
                self._drop(closed)
                self._forget_idle(closed.holder)
                out.append(Close(closed.number))
                room += 1
            room -= 1
            self._last_connection += 1
            connection = _Connection(self._last_connection, holder)
            holder.connections.append(connection)
            self._connections[connection.number] = connection
            out.append(Connect(connection.number, holder.name))

    def _wants_connection(self, holder: _Holder, now: float) -> bool:
        return bool(
            holder.waiting
            and now >= holder.rests_until
            and len(holder.connections) < self._policy.connections_per_holder
            and all(each.open for each in holder.connections)
        )

    def _idle(self, connection: _Connection) -> bool:
        return connection.open and not connection.asked and not connection.holder.waiting

    def _wait(self, segment: _Segment) -> None:
        segment.holder.waiting.append(segment)
        segment.holder.waiting_bytes += segment.wanted.size_bytes

    def _take_up(self, segment: _Segment) -> None:
        """If it was put off, it waits again, with all of its partition."""
        some = segment.holder.put_off.pop((segment.wanted.job, segment.wanted.partition), {})
        for each in some.values():
            self._wait(each)

    def _try_again(self, segment: _Segment, error: CortexError, out: list[Instruction]) -> None:
        segment.tries += 1
        if segment.tries >= self._policy.tries_max:
            self._give_up(segment, error, out)
        else:
            self._wait(segment)

    def _drop(self, connection: _Connection) -> None:
        """Forget a connection; what was asked on it waits again, before everything else."""
        del self._connections[connection.number]
        holder = connection.holder
        holder.connections.remove(connection)
        for request, segment in reversed(connection.asked.items()):
            del self._asked[request]
            holder.waiting.appendleft(segment)
            holder.waiting_bytes += segment.wanted.size_bytes

    def _failed(self, holder: _Holder, error: CortexError, now: float, out: list[Instruction]) -> None:
        if now < holder.rests_until:
            return  # both connections broke, or several segments came damaged: one failure
        holder.failures += 1
        policy = self._policy
        if holder.failures >= policy.tries_max:
            self._give_up_waiting(holder, error, out)
            holder.failures = 0
        rest_s = min(policy.backoff_first_s * 4.0 ** max(0, holder.failures - 1), policy.backoff_s_max)
        holder.rests_until = now + rest_s * (0.5 + self._jitter())

    def _give_up_waiting(self, holder: _Holder, error: CortexError, out: list[Instruction]) -> None:
        put_off = [segment for some in holder.put_off.values() for segment in some.values()]
        for segment in (*holder.waiting, *put_off):
            self._give_up(segment, error, out, unreachable=True)
        holder.put_off.clear()
        holder.waiting.clear()
        holder.waiting_bytes = 0

    def _give_up(
        self, segment: _Segment, error: CortexError, out: list[Instruction], unreachable: bool = False
    ) -> None:
        wanted = segment.wanted
        del self._segments[wanted.key]
        out.append(GiveUp(wanted, fetch_failed(wanted, error, unreachable)))

    def _forget_idle(self, holder: _Holder) -> None:
        if not (holder.waiting or holder.connections or holder.put_off):
            self._holders.pop(holder.name, None)


def map_order(attempt: str) -> tuple[int, str]:
    """What sorts attempts of one job's maps; their numbers have six digits or more."""
    return len(attempt.partition(".")[0]), attempt


_OURS = ("attempt", "partition", "holder", "unreachable")
_AGAIN = "its map runs again by itself; if this repeats, look at that node and the network to it"
_OPEN = (
    "the maps run again by themselves; if this repeats: is the port of each node open to the others (8787)?"
)


def fetch_failed(wanted: Wanted, cause: CortexError, unreachable: bool = False) -> FetchFailed:
    return FetchFailed(
        f"partition {wanted.partition} of map output {wanted.attempt} could not be fetched from"
        f" {wanted.holder}: {cause.message}",
        cure=_OPEN if unreachable else _AGAIN,
        details={
            "attempt": wanted.attempt,
            "partition": wanted.partition,
            "holder": wanted.holder,
            "unreachable": "yes" if unreachable else "",
            **{name: value for name, value in cause.details.items() if name not in _OURS},
        },
    )
