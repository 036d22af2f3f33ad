"""What an earlier life of the server has left, until it is known what is left of it. Pure.

Nodes that were connected are *expected* back for NODE_RETURN_S. One that is back says which attempts it
holds: those that are not known are *claims*, taken up when their tasks turn out to be ready, for what has
ended before may be known only to another node. A report about a claim waits with it. A node has told all
with its first heartbeat, which follows the reports that nobody had acknowledged. Once every expected node
has told all, or is given up, the earlier life is over: claims that are left are of no use.

The Scheduler tells what happens and asks what follows (`is_over`, `take_up`, `end`); nothing of the earlier
life's jobs is leased before. Jobs and nodes belong to others.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping

from cortex.errors import CortexError, InternalError
from cortex.ids import AttemptId, job_of
from cortex.limits import LIVES_MAX, NODE_RETURN_S
from cortex.scheduling.events import JobKept
from cortex.scheduling.job_book import new_run
from cortex.scheduling.leases import LeaseBook
from cortex.scheduling.records import AttemptEnded
from cortex.scheduling.run import Run
from cortex.wire.messages import AttemptFailed, AttemptFinished

Report = AttemptFinished | AttemptFailed


class _Claim:
    """An attempt of the server's earlier life that a node says it holds, and whose task is not ready yet."""

    __slots__ = ("node", "report", "version")

    def __init__(self, node: str, version: int) -> None:
        self.node = node
        self.version = version
        self.report: Report | None = None


def run_again(kept: JobKept, now: float) -> tuple[Run, set[str], float]:
    """A job of the earlier life as its records make it, held back; the nodes that they name, and the time of
    the last one. One that cannot be made again has failed."""
    job = new_run(kept.job, kept.request, now - kept.age_s, kept.lives)
    job.hold_back()
    nodes: set[str] = set()
    at = now
    try:
        if kept.lives > LIVES_MAX:
            raise InternalError(f"the server has started {LIVES_MAX} times since the job began")
        for record in kept.records:
            if isinstance(record, AttemptEnded):
                nodes.add(record.node.node)
                at = job.began_at + record.at_s
            job.replay(record)
    except Exception as error:
        if not isinstance(error, CortexError):  # what nobody foresaw: the other jobs go on
            said = f"job {kept.job} could not be taken up again: {error}"
            error = InternalError(said, details={"traceback": traceback.format_exc()})
        if not job.ended:
            job.fail(error.report())
    return job, nodes, at


class EarlierLife:
    def __init__(self) -> None:
        self.expected: dict[str, str] = {}
        """Nodes of an earlier life that are not back yet: name -> incarnation."""
        self.expected_until = 0.0
        self.matters = False
        """Its jobs wait for them."""
        self._returning: set[str] = set()
        """Those that are back, but have not told again what was not acknowledged: a heartbeat follows it."""
        self._claims: dict[str, _Claim] = {}

    def begin(self, nodes: Mapping[str, str], now: float) -> None:
        """There was one, with these nodes (name -> incarnation)."""
        self.expected = dict(nodes)
        self.expected_until = now + NODE_RETURN_S
        self.matters = True

    # --- nodes ---

    def joined(self, node: str) -> str | None:
        """The incarnation that was expected of this node, which is expected no more."""
        return self.expected.pop(node, None)

    def claim(self, node: str, attempts: Mapping[str, int]) -> None:
        """It is the node that was expected, and holds these attempts (-> version), which nobody knows."""
        self._returning.add(node)
        self._claims.update((attempt, _Claim(node, version)) for attempt, version in attempts.items())

    def has_told_all(self, node: str) -> bool:
        """A heartbeat of the node has come. True if the earlier life may be over by it."""
        if not self._returning:
            return False
        self._returning.discard(node)
        return True

    def lose(self, node: str) -> None:
        """The node is lost (again)."""
        self._returning.discard(node)
        if self._claims:
            self._claims = {a: claim for a, claim in self._claims.items() if claim.node != node}

    def give_up(self, now: float) -> list[str]:
        """Those that are not back, when their time is over: none is expected any more."""
        if now < self.expected_until:
            return []
        lost, self.expected = sorted(self.expected), {}
        self._returning.clear()
        return lost

    # --- claims ---

    def is_claimed(self, attempt: str) -> bool:
        return attempt in self._claims

    def keeps(self, report: Report, attempt: str) -> bool:
        """Is it not known yet whether the attempt's task is ready? Then its report is kept until it is."""
        claim = self._claims.get(attempt)
        if claim is None or claim.node != report.node:
            return False
        claim.report = report
        return True

    def given_back(self, attempt: str) -> None:
        """The node does not hold it any more."""
        self._claims.pop(attempt, None)

    def take_up(self, jobs: Mapping[str, Run], leases: LeaseBook, now: float) -> Iterator[Report | None]:
        """Lease anew what nodes hold of ready tasks. Gives for each the report that waited for it, which is
        to be taken before the next one is asked for: it may have made other tasks ready."""
        for attempt, claim in list(self._claims.items()):
            job = jobs.get(job_of(AttemptId(attempt)))
            node = leases.nodes.get(claim.node)
            if job is None or node is None:
                continue
            running = job.resume(attempt, node.output_node, claim.version, now)
            if running is None:
                continue
            del self._claims[attempt]
            leases.hold(node, [running])
            yield claim.report

    # --- its end ---

    @property
    def is_over(self) -> bool:
        """Every node of it is back, and has told all, or is given up: it is to be ended."""
        return self.matters and not self.expected and not self._returning

    def end(self) -> list[tuple[str, str]]:
        """Nothing waits for it any more. Gives the claims that are left, (node, attempt) each."""
        self.matters = False
        left = [(claim.node, attempt) for attempt, claim in self._claims.items()]
        self._claims.clear()
        return left
