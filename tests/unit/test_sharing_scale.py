"""Many jobs on a simulated cluster, at a size that takes no time: who gets slots, and when."""

from __future__ import annotations

from benchmarks.sharing_scale import Load, SharingSimulation


def test_new_jobs_begin_with_the_next_tasks_to_end_and_users_hold_as_many_slots() -> None:
    load = Load(nodes=10, slots=4, jobs=13, users=4, maps=200, map_s=1.0, seconds=8.0)
    simulation = SharingSimulation(load)
    simulation.run()
    figures = simulation.figures()
    assert figures["first_task_after_s"]["not_begun"] == 0
    # A task takes 1.5 s at most: whoever waits for one or two to end has begun.
    assert figures["first_task_after_s"]["max"] < 2.0
    assert figures["slots"]["busy"] == 40
    assert all(8 <= held <= 12 for held in figures["slots"]["of_users"])
    assert figures["instructions"]["Recall"] > 0


def test_a_job_that_comes_alone_while_tasks_are_long_has_the_first_slot_that_becomes_free() -> None:
    load = Load(nodes=10, slots=4, jobs=2, users=2, maps=100, map_s=20.0, seconds=12.0)
    simulation = SharingSimulation(load)
    simulation.run()
    # 40 slots, whose tasks of 10 to 30 s began together 5 s ago: the first ends 10 s after they did.
    assert simulation.figures()["first_task_after_s"]["max"] < 7.0


def test_the_same_load_gives_the_same_shares() -> None:
    load = Load(nodes=4, slots=2, jobs=6, users=3, maps=30, seconds=4.0)
    runs = []
    for _ in range(2):
        simulation = SharingSimulation(load)
        simulation.run()
        runs.append((simulation.waits_s, simulation.instructions))
    assert runs[0] == runs[1]
