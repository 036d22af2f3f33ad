"""Ends of attempts on their way from a node to its server."""

from __future__ import annotations

import pytest

from cortex.errors import Fault, SpillFull, UsageError
from cortex.node.end_reports import EndReports
from cortex.wire import messages as m

JOB, OTHER = "j" + "1" * 12, "j" + "2" * 12


class Bench:
    def __init__(self, *, keep: bool = True, one_of_many: bool = True) -> None:
        self.sent: list[m.Message] = []
        self.incarnation = "1"
        self.reports = EndReports(
            "n", lambda: self.incarnation, self.sent.append, keep=keep, one_of_many=one_of_many
        )

    def again(self) -> list[m.Message]:
        self.sent.clear()
        self.reports.tell_again()
        return self.sent


def failed(attempt: str, error: Exception | None = None) -> m.TaskFailed:
    cause = error if isinstance(error, SpillFull) else UsageError("no")
    return m.TaskFailed(attempt, cause.report(), 1.0, 5)


def test_an_end_is_told_again_as_it_was_until_it_is_acknowledged() -> None:
    bench = Bench()
    attempts = [f"{JOB}-m00000{n}.0" for n in range(3)] + [f"{OTHER}-r000000.0"]
    for number, attempt in enumerate(attempts):
        bench.reports.tell(failed(attempt), number)
    told = list(bench.sent)
    assert bench.reports.failed == 4
    assert bench.again() == told
    assert bench.reports.versions() == {attempt: number for number, attempt in enumerate(attempts)}
    bench.reports.drop((attempts[1], "j-unknown"))
    assert bench.again() == [told[0], *told[2:]]
    bench.reports.drop_job(JOB)
    assert bench.again() == [told[3]]


def test_nothing_is_kept_where_the_server_does_not_die_before_its_node() -> None:
    bench = Bench(keep=False)
    bench.reports.tell(failed(f"{JOB}-m000000.0"), 0)
    assert len(bench.sent) == 1
    assert bench.again() == []


@pytest.mark.parametrize("one_of_many", [True, False])
def test_a_disk_that_is_full_ends_the_job_only_where_there_is_no_other(one_of_many: bool) -> None:
    bench = Bench(one_of_many=one_of_many)
    full = SpillFull("no room")
    bench.reports.tell(failed(f"{JOB}-m000000.0", full), 0)
    (report,) = bench.sent
    assert isinstance(report, m.AttemptFailed)
    error = report.failed.error
    assert (error.fault == Fault.TASK.value) is one_of_many
    assert error.details.get("node") == ("n" if one_of_many else None)
