"""The scheduler with nodes that have input below their data roots: whom it asks, waits for, and leases to."""

from __future__ import annotations

from typing import Any

from cortex.ids import JobId
from cortex.job.plan import OUT, UNKNOWN, ClientFile, InputFile, InputPlan, Split, SplitGroups, Splits
from cortex.job.spec import InputSpec, JobSpec
from cortex.limits import DATA_ANSWER_S_MAX, HOLDER_RETURN_S, LOCALITY_DELAY_S, PROGRESS_S
from cortex.scheduling import events
from cortex.scheduling.scheduler import Scheduler
from cortex.wire import messages as m

JOB = JobId("j000000000001")
PER_FILE = 4


class Cluster:
    """Nodes with data roots: `has` says which data files each has. File n is ``data:<n>``."""

    def __init__(self, *has: str, slots: int = 1, scan: bool = False) -> None:
        self.scheduler, self.now, self.scan = Scheduler(), 0.0, scan
        self.has = {f"n{i}": files for i, files in enumerate(has)}
        self.slots = slots
        self.files = "".join(sorted(set("".join(has))))
        self.heard: dict[str, list[Any]] = {name: [] for name in self.has}
        self.client: list[Any] = []
        self.silent: set[str] = set()
        self.deaf: set[str] = set()
        """Alive, and answering nothing about input."""
        for name in self.has:
            self.join(name)

    def join(self, name: str, life: str = "1") -> None:
        hello = m.NodeHello(name, life, self.slots, 1000, {}, f"{name}:1", data_roots=1)
        self.tell(events.NodeJoined(hello))

    def tell(self, event: events.Event) -> None:
        answers: list[Any] = []
        for instruction in self.scheduler.handle(event, self.now):
            if isinstance(instruction, events.SendToClient):
                self.client.append(instruction.message)
            elif isinstance(instruction, events.SendToNode):
                name, message = instruction.node, instruction.message
                self.heard[name].append(message)
                if name in self.silent | self.deaf:
                    continue
                if isinstance(message, m.ListData):
                    found = tuple(ClientFile(f"data:{f}", 10, 0, b"m") for f in self.has[name])
                    answers.append(m.DataListed(name, message.job, (found,)))
                elif isinstance(message, m.FindInput):
                    bits = sum(
                        1 << i for i, file in enumerate(message.files) if file.path[5:] in set(self.has[name])
                    )
                    held = bits.to_bytes((len(message.files) + 7) // 8, "little")
                    answers.append(m.InputFound(name, message.job, held))
        for answer in answers:
            self.tell(answer)

    def submit(self) -> None:
        spec = JobSpec("x", InputSpec(("data:*",)), reduce_form="aggregate")
        self.tell(events.JobSubmitted(JOB, m.SubmitJob(spec, b"", (), "", client_files=(None,))))

    def plan(self) -> InputPlan:
        kind = "csv" if self.scan else "text"
        files = tuple(
            InputFile(i, f"data:{f}", kind, 10, 0, 0, client_file=i, needs_scan=self.scan)
            for i, f in enumerate(self.files)
        )
        count = len(files) * PER_FILE
        splits = [
            Split(
                i,
                i // PER_FILE,
                i % PER_FILE,
                1,
                start_state=UNKNOWN if self.scan and i % PER_FILE else OUT,
                end_state=UNKNOWN if self.scan else OUT,
            )
            for i in range(count)
        ]
        groups = SplitGroups.of((i,) for i in range(count))
        return InputPlan(files, Splits.of(splits), groups, (("line", "string"),), count, 1)

    def tick(self, seconds: float = PROGRESS_S) -> None:
        for _ in range(round(seconds / PROGRESS_S)):
            self.now += PROGRESS_S
            for name, node in list(self.scheduler.leases.nodes.items()):
                if name not in self.silent:
                    self.tell(m.Heartbeat(name, node.hello.incarnation, (), 1, 1))
            self.tell(events.Tick())

    def leased(self) -> dict[str, list[str]]:
        return {n.name: [a.partition("-")[2] for a in n.held] for n in self.scheduler.leases.nodes.values()}

    def finish(self, node: str, result: m.Result) -> None:
        held = self.scheduler.leases.nodes[node]
        attempt = next(iter(held.held))
        self.tell(m.AttemptFinished(node, held.hello.incarnation, m.TaskFinished(attempt, result, 1.0, 1)))

    def planned(self) -> None:
        (node,) = [name for name, held in self.leased().items() if held]
        self.finish(node, m.PlanResult(self.plan()))

    def mapped(self, node: str) -> int:
        held = self.scheduler.leases.nodes[node].held
        index = next(iter(held.values())).index
        self.finish(node, m.MapResult(index, m.TaskStats(), (1,)))
        return index

    def homes(self) -> dict[str, set[str]]:
        """Node -> files of the maps that it has been leased."""
        return {
            name: {self.files[int(a[1:7]) // PER_FILE] for a in held if a.startswith("m")}
            for name, held in self.leased().items()
        }


def test_the_plan_waits_for_every_node_and_is_made_where_most_lies() -> None:
    cluster = Cluster("a", "bcd")
    cluster.silent = {"n0"}
    cluster.submit()
    cluster.tick()
    assert cluster.leased() == {"n0": [], "n1": []}
    cluster.silent = set()
    found = (ClientFile("data:a", 10, 0, b"m"),)
    cluster.tell(m.DataListed("n0", JOB, (found,)))
    assert cluster.leased() == {"n0": [], "n1": ["plan.0"]}
    (task,) = [run.task for each in cluster.heard["n1"] if isinstance(each, m.Lease) for run in each.tasks]
    assert [file.path for file in task.data_files[0]] == ["data:a", "data:b", "data:c", "data:d"]
    kinds = [type(message).__name__ for message in cluster.heard["n1"]]
    assert kinds.index("InputHolders") < kinds.index("Lease")


def test_a_node_whose_disk_hangs_holds_no_job() -> None:
    cluster = Cluster("a", "a")
    cluster.deaf = {"n0"}
    listed = (ClientFile("/c/a", 1, 1),)
    spec = JobSpec("x", InputSpec(("/c/a",)), reduce_form="aggregate")
    cluster.tell(events.JobSubmitted(JOB, m.SubmitJob(spec, b"", (), "", client_files=(listed,))))
    cluster.tick(DATA_ANSWER_S_MAX / 2)
    assert not any(cluster.leased().values())
    cluster.tick(DATA_ANSWER_S_MAX)
    assert any(cluster.leased().values())


def test_a_node_that_does_not_say_what_it_has_ends_a_job_that_names_data() -> None:
    cluster = Cluster("a", "a")
    cluster.deaf = {"n0"}
    cluster.submit()
    cluster.tick(DATA_ANSWER_S_MAX + 1)
    (failed,) = [message for message in cluster.client if isinstance(message, m.JobFailed)]
    assert failed.error.code == "input-lost"
    assert "node n0" in failed.error.message


def test_maps_go_to_their_holders_and_after_a_delay_to_others() -> None:
    cluster = Cluster("a", "b", "")
    cluster.submit()
    cluster.planned()
    assert cluster.homes() == {"n0": {"a"}, "n1": {"b"}, "n2": set()}
    cluster.tick(LOCALITY_DELAY_S / 2)
    assert cluster.homes()["n2"] == set()
    cluster.tick(LOCALITY_DELAY_S)
    assert len(cluster.leased()["n2"]) == 2
    told = [message for message in cluster.heard["n2"] if isinstance(message, m.InputHolders)]
    assert [node.node for node in told[-1].nodes] == ["n0", "n1"]


def test_a_copy_takes_over_when_a_holder_is_lost() -> None:
    cluster = Cluster("a", "a")
    cluster.submit()
    cluster.planned()
    cluster.tell(events.NodeLost("n0"))
    done = []
    while not any(a.startswith("r") for a in cluster.leased()["n1"]):
        done.append(cluster.mapped("n1"))
    assert sorted(done) == list(range(PER_FILE))


def test_without_a_holder_maps_wait_and_go_on_when_it_is_back() -> None:
    cluster = Cluster("a", "b")
    cluster.submit()
    cluster.planned()
    cluster.tell(events.NodeLost("n0"))
    for _ in range(PER_FILE):
        cluster.mapped("n1")
    cluster.tick(HOLDER_RETURN_S / 2)
    assert cluster.leased()["n1"] == []
    cluster.join("n0", "2")
    assert cluster.homes()["n0"] == {"a"}
    cluster.tick(HOLDER_RETURN_S)
    assert not any(isinstance(message, m.JobFailed) for message in cluster.client)


def test_a_holder_that_does_not_come_back_fails_the_job_by_name() -> None:
    cluster = Cluster("a", "b")
    cluster.submit()
    cluster.planned()
    cluster.tell(events.NodeLost("n0"))
    cluster.tick(HOLDER_RETURN_S + 2 * PROGRESS_S)
    (failed,) = [message for message in cluster.client if isinstance(message, m.JobFailed)]
    assert failed.error.code == "input-lost"
    assert "data:a lies on node n0" in failed.error.message
    assert "--data" in failed.error.cure


def test_also_before_it_was_scanned() -> None:
    cluster = Cluster("a", "b", scan=True)
    cluster.submit()
    cluster.planned()
    cluster.tell(events.NodeLost("n0"))
    cluster.tick(HOLDER_RETURN_S + 2 * PROGRESS_S)
    (failed,) = [message for message in cluster.client if isinstance(message, m.JobFailed)]
    assert "data:a lies on node n0" in failed.error.message


def test_a_read_that_reached_no_holder_costs_no_attempt() -> None:
    cluster = Cluster("a", "")
    cluster.submit()
    cluster.planned()
    cluster.tick(2 * LOCALITY_DELAY_S)
    node = cluster.scheduler.leases.nodes["n1"]
    attempt, running = next(iter(node.held.items()))
    report = m.TaskFailed(attempt, _lost(), 1.0, 1)
    cluster.tell(m.AttemptFailed("n1", "1", report))
    table = cluster.scheduler.jobs[JOB]._tables["map"]
    assert running.index not in table._failures
    assert JOB in cluster.scheduler.jobs


def _lost() -> Any:
    from cortex.errors import InputLost

    return InputLost("nobody there").report()


def test_files_of_different_nodes_are_scanned_beside_each_other() -> None:
    cluster = Cluster("a", "b", scan=True, slots=2)
    cluster.submit()
    cluster.planned()
    first = {name: held[0] for name, held in cluster.leased().items()}
    assert first == {"n0": "s000000.0", "n1": f"s{PER_FILE:06d}.0"}


def test_nodes_that_find_nothing_are_not_looked_at_again_until_there_is_something() -> None:
    cluster = Cluster("a", *[""] * 20)
    cluster.submit()
    cluster.planned()
    assert cluster.scheduler.leases.wanting == 0
    cluster.mapped("n0")
    assert cluster.scheduler.leases.wanting == 0
    cluster.tick(2 * LOCALITY_DELAY_S)
    assert sum(len(held) for held in cluster.leased().values()) == PER_FILE - 1


def test_a_job_that_is_its_plan_ends_with_it() -> None:
    cluster = Cluster("a", "ab")
    spec = JobSpec("x", InputSpec(("data:*",)))
    cluster.tell(events.JobSubmitted(JOB, m.SubmitJob(spec, b"", (), "", plan_only=True)))
    cluster.planned()
    made, done = cluster.client[-2:]
    assert isinstance(made, m.PlanMade)
    assert isinstance(done, m.JobDone)
    assert [made.sets[number] for number in made.set_of] == [("n0", "n1"), ("n1",)]
    assert made.client_has == "00"
    cluster.tell(m.JobReceived(JOB))
    assert not cluster.scheduler.kept
