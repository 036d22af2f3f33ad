"""A large job's journal, replayed: what each record costs, counted in operations and not in time."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.journal_replay import JOB, main, replay, write_journal
from cortex.scheduling.job_state import JobState
from tests.unit.test_scheduler_scale import operations


def test_a_record_costs_the_same_however_many_there_are_and_is_little(tmp_path: Path) -> None:
    costs = []
    for maps in (100, 600, 1600):
        folder = tmp_path / str(maps)
        write_journal(folder, maps, 20)
        costs.append(operations(partial(replay, folder)))
    few, many = (costs[1] - costs[0]) / 500, (costs[2] - costs[1]) / 1000
    assert many < few * 1.1
    assert many < 2000  # 1,600 when this was written


def test_the_job_goes_on_where_it_was(tmp_path: Path) -> None:
    write_journal(tmp_path / "journal", 300, 7)
    scheduler, _ = replay(tmp_path / "journal")
    job = scheduler.jobs[JOB]
    assert job.state is JobState.REDUCING
    assert job.progress.stages["map"].table.done == 300
    assert job.progress.stages["map"].bytes_done == 300 * 64
    assert job.progress.stages["reduce"].rows_total == 300 * sum(range(1000, 1007))


def test_the_benchmark_runs(tmp_path: Path) -> None:
    assert main(["--maps", "50", "--partitions", "3", "--json", str(tmp_path / "figures")]) == 0
    assert '"us_per_record"' in (tmp_path / "figures").read_text()
