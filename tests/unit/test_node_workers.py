"""What a node remembers of its workers: cells in hand, results that were not taken, children's cells."""

from __future__ import annotations

from typing import Any

from cortex.node.workers import Workers
from cortex.wire import messages as m

F, G = "f" * 32, "9" * 32
JOB = "j000000000001"
W = f"{JOB}-w000000.0"


def cell(number: int, count: int = 1, source: str = "", function: str = F, **more: Any) -> m.Cell:
    return m.Cell(number, function, count, m.CallForm.ONE, b"d", source=source, **more)


class Bench:
    def __init__(self, keep: bool = True) -> None:
        self.sent: list[m.Message] = []
        self.told: list[tuple[str, m.Message]] = []
        self.discarded: list[tuple[str, str]] = []

        def tell(attempt: str, message: m.ToWorker) -> bool:
            self.told.append((attempt, message))
            return True

        def discard(job: str, name: str) -> None:
            self.discarded.append((job, name))

        self.workers = Workers("n", lambda: "1", self.sent.append, tell, discard, keep=keep)
        self.workers.receive(m.FunctionCode(JOB, F, "f", b"code"))
        self.workers.began(JOB, W)

    def said(self, said: m.FromWorker) -> None:
        self.workers.said(W, said)

    def again(self) -> list[m.Message]:
        """What is said after a lost link."""
        self.sent.clear()
        self.workers.hello()
        return [each.said if isinstance(each, m.WorkerSaid) else each for each in self.sent]


def done(number: int, start: int = 0, stop: int = 1, source: str = "", **more: Any) -> m.CellDone:
    return m.CellDone(source, number, start, stop, b"r", **more)


def held(*pieces: m.Piece) -> m.WorkerHolds:
    return m.WorkerHolds("n", "1", W, pieces, (F,))


def test_a_function_is_told_once_before_its_first_cell() -> None:
    bench = Bench()
    run = m.RunCells(W, (cell(0),))
    bench.workers.receive(run)
    bench.workers.receive(m.RunCells(W, (cell(1),)))
    kinds = [type(message).__name__ for _, message in bench.told]
    assert kinds == ["FunctionCode", "RunCells", "RunCells"]
    assert bench.told[1][1] is run  # passed on as it is


def test_what_is_in_hand_follows_results_and_what_is_given_back() -> None:
    bench = Bench()
    bench.workers.receive(m.RunCells(W, (cell(0, 10), cell(1, 10), cell(2, 10, start=2, stop=6))))
    assert bench.again() == [held(m.Piece("", 0, 0, 10), m.Piece("", 1, 0, 10), m.Piece("", 2, 2, 6))]
    bench.said(m.CellsRun(W, (done(0, 0, 4),)))
    bench.said(m.CellsGivenBack(W, (m.Piece("", 0, 5, 10), m.Piece("", 1, 0, 10))))
    assert bench.again()[-1] == held(m.Piece("", 0, 4, 5), m.Piece("", 2, 2, 6))
    bench.said(m.CellsRun(W, (done(0, 4, 5), done(2, 2, 6))))
    assert bench.again()[-1] == held()


def test_results_are_said_again_until_they_are_taken() -> None:
    bench = Bench()
    bench.workers.receive(m.RunCells(W, (cell(0), cell(1))))
    bench.said(m.CellsRun(W, (done(0), done(1, attached=m.Attached("r1", (3,))))))
    assert bench.again() == [
        m.CellsRun(W, (done(0),)),
        m.CellsRun(W, (done(1, attached=m.Attached("r1", (3,))),)),
        held(),
    ]
    bench.workers.receive(m.CellsTaken(JOB, (m.Piece("", 0, 0, 1),)))
    assert bench.discarded == []
    bench.workers.receive(m.CellsTaken(JOB, (m.Piece("", 1, 0, 1),)))
    assert bench.discarded == [(JOB, "r1")]
    assert bench.again() == [held()]
    bench.said(m.CellsRun(W, (done(2),)))
    bench.workers.ended(W)
    assert bench.again() == [m.CellsRun(W, (done(2),))]  # its worker is gone, the result is not


def test_where_the_server_does_not_die_before_its_node_only_files_are_remembered() -> None:
    bench = Bench(keep=False)
    bench.workers.receive(m.RunCells(W, (cell(0), cell(1))))
    bench.said(m.CellsRun(W, (done(0), done(1, attached=m.Attached("r1", (3,))))))
    assert bench.again()[:-1] == [m.CellsRun(W, (done(1, attached=m.Attached("r1", (3,))),))]


def test_children_are_submitted_again_until_their_results_are_here() -> None:
    bench = Bench()
    bench.workers.receive(m.RunCells(W, (cell(0),)))
    bench.said(m.FunctionCode(JOB, G, "g", b"other"))
    bench.said(m.ChildCells(W, (cell(5, 2, function=G), cell(6, function=G), cell(7, function=G))))
    bench.workers.receive(m.ChildrenDone(W, (done(5, 0, 2, source=W),)))
    assert bench.told[-1][1] == m.ChildrenDone(W, (done(5, 0, 2, source=W),))
    assert isinstance(bench.sent[-1], m.WorkerSaid)
    assert bench.sent[-1].said == m.CellsTaken(JOB, (m.Piece(W, 5, 0, 2),))
    bench.said(m.ChildrenDropped(W, (6,)))
    function, children, _ = bench.again()
    assert function == m.FunctionCode(JOB, G, "g", b"other")
    assert children == m.ChildCells(W, (cell(7, function=G),))
    bench.said(m.ChildrenDropped(W, all=True))
    assert len(bench.again()) == 1


def test_a_child_whose_result_comes_in_slices_is_submitted_again_until_all_are_here() -> None:
    bench = Bench()
    bench.said(m.ChildCells(W, (cell(5, 4),)))
    for start, stop in ((1, 2), (3, 4), (0, 1)):
        bench.workers.receive(m.ChildrenDone(W, (done(5, start, stop, source=W),)))
        assert any(isinstance(each, m.ChildCells) for each in bench.again())
    bench.workers.receive(m.ChildrenDone(W, (done(5, 2, 3, source=W),)))
    assert not any(isinstance(each, m.ChildCells) for each in bench.again())


def test_the_end_of_a_job_is_the_end_of_all_that() -> None:
    bench = Bench()
    bench.workers.receive(m.RunCells(W, (cell(0),)))
    bench.said(m.CellsRun(W, (done(0),)))
    bench.workers.end_job(JOB)
    assert bench.again() == []
    bench.told.clear()
    bench.workers.receive(m.RunCells(W, (cell(1),)))  # the server did not know yet
    assert bench.told == []


def test_functions_that_are_forgotten_are_told_anew() -> None:
    bench = Bench()
    bench.workers.receive(m.RunCells(W, (cell(0),)))
    forget = m.ForgetFunctions(JOB, (F, G))
    bench.workers.receive(forget)
    assert bench.told[-1] == (W, forget)
    assert bench.again()[-1].functions == ()  # type: ignore[attr-defined]
    bench.workers.receive(forget)
    assert len(bench.told) == 3  # the worker has none of them any more
    bench.workers.receive(m.FunctionCode(JOB, F, "f", b"code"))
    bench.workers.receive(m.RunCells(W, (cell(1),)))
    assert [type(each).__name__ for _, each in bench.told[3:]] == ["FunctionCode", "RunCells"]
