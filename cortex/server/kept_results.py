"""Detached jobs: which they are, until when what is kept of them is kept, and who follows a job.

A detached job has no client of its own. Its result lies at the nodes until it expires or is forgotten, by
wall time, so that it does across lives of the server: when a job ends, its expiry becomes part of its answer,
which the journal keeps. Map outputs are kept beside it for MAPS_KEPT_S, so that a node lost early costs
little.

Pure bookkeeping: `now` is seconds since 1970; clients are told apart by identity.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from cortex.errors import UsageError
from cortex.limits import FAILURES_KEPT_S, MAPS_KEPT_S, RESULTS_KEPT_MAX
from cortex.wire.messages import JobDone, JobFailed

E = TypeVar("E", bound=JobDone | JobFailed)


@dataclass(slots=True)
class _Detached:
    keep_s: float
    expires_at: float = 0.0
    """0: it is under way."""
    failed: bool = False


@dataclass(slots=True)
class KeptResults:
    _jobs: dict[str, _Detached] = field(default_factory=dict)
    _followers: dict[str, list[Any]] = field(default_factory=dict)

    # --- detached jobs ---

    def no_room(self) -> UsageError | None:
        """Why no further detached job is taken, if that is so."""
        if sum(not each.failed for each in self._jobs.values()) < RESULTS_KEPT_MAX:
            return None
        return UsageError(
            f"{RESULTS_KEPT_MAX} detached jobs are under way or have results that are kept: no more is taken",
            cure="drop results that nobody needs: cortex forget ID (see cortex jobs)",
        )

    def accepted(self, job: str, keep_s: float, expires_at: float = 0.0, failed: bool = False) -> None:
        """`expires_at`: of one that had ended in an earlier life of the server."""
        self._jobs[job] = _Detached(keep_s, expires_at, failed)

    def forget(self, job: str) -> None:
        self._jobs.pop(job, None)

    def __contains__(self, job: object) -> bool:
        return job in self._jobs

    def stamped(self, answer: E, now: float) -> E:
        """The end of a job with its expiry, if it is detached. A result that was lost and made anew expires
        when it did before."""
        found = self._jobs.get(answer.job)
        if found is None:
            return answer
        if isinstance(answer, JobFailed):
            found.failed = True
            found.expires_at = now + min(found.keep_s, FAILURES_KEPT_S)
            failed = [each for each in self._jobs.values() if each.failed]
            if len(failed) > RESULTS_KEPT_MAX:
                min(failed, key=lambda each: each.expires_at).expires_at = now
        elif not found.expires_at:
            found.expires_at = now + found.keep_s
        return msgspec.structs.replace(answer, expires_at=found.expires_at)

    def expires_at(self, job: str) -> float:
        """0 for one that is under way, or not detached."""
        found = self._jobs.get(job)
        return 0.0 if found is None else found.expires_at

    def expired(self, now: float) -> list[str]:
        return [job for job, each in self._jobs.items() if 0 < each.expires_at <= now]

    def maps_not_kept(self, jobs: Iterable[str], now: float) -> list[str]:
        """Those of `jobs`, which are done, whose map outputs have been kept long enough."""
        return [
            job
            for job in jobs
            if (found := self._jobs.get(job)) and now >= found.expires_at - found.keep_s + MAPS_KEPT_S
        ]

    # --- followers ---

    def follow(self, job: str, client: Any) -> None:
        followers = self._followers.setdefault(job, [])
        if client not in followers:
            followers.append(client)

    def followers(self, job: str) -> list[Any]:
        return self._followers.get(job, [])

    def follows(self, client: Any, job: str) -> bool:
        return client in self._followers.get(job, [])

    def unfollow(self, job: str) -> list[Any]:
        """Nobody follows the job any more; gives who did."""
        return self._followers.pop(job, [])

    def client_lost(self, client: Any) -> None:
        for job in [job for job, followers in self._followers.items() if client in followers]:
            self._followers[job].remove(client)
            if not self._followers[job]:
                del self._followers[job]
