"""Which nodes have a job's input below their data roots. Pure bookkeeping of one job's questions and answers.

Two questions. `ListData`, where the job names files by data names: what do they stand for at each node? When
all have answered the files are known, in an order of names alone, and one name with two contents is an error.
Then `FindInput`: which of all the job's files, the client's included, does the node have? A file's id is its
place in that question. A node that comes (back) later is asked the second again, and one that is lost has
nothing any more. The plan waits for the answers of all nodes that are here.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from cortex.errors import DataConflict, InputError, InputLost, from_report
from cortex.job.data_names import is_data_name
from cortex.job.plan import ClientFile, ClientFiles, DataFiles, InputPlan
from cortex.job.spec import InputSpec
from cortex.limits import DATA_ANSWER_S_MAX
from cortex.wire.messages import DataListed, FindInput, InputFound, ListData

_NODES_SHOWN = 10  # that an error names one by one


class Survey:
    def __init__(self, job: str, spec: InputSpec, client_files: ClientFiles) -> None:
        self._job = job
        self._full = spec.fingerprint == "full"
        self._client = tuple(file for found in client_files for file in found or ())
        self.client_files = len(self._client)
        """Ids below this are the client's files."""
        self.names = tuple(path for path in spec.paths if is_data_name(path))
        self.data_files: DataFiles | None = None if self.names else ()
        """None: not known yet."""
        self._files: tuple[ClientFile, ...] | None = None if self.names else self._client
        self._question: FindInput | None = None
        """One object for all nodes: it may be large, and need be encoded only once."""
        self._asked: set[str] = set()
        """Nodes whose answer is due."""
        self._waits_since: float | None = None
        self._listed: dict[str, DataFiles] = {}
        self._held: dict[str, bytes] = {}
        self._any_held = False
        self._had: dict[int, str] = {}
        """Data files -> the last node that was lost with them."""
        self.version = 0
        """Changes with who has what."""

    # --- questions ---

    def question(self, node: str) -> ListData | FindInput | None:
        """What this node, which has data roots, is to be asked now."""
        if self._files is None:
            if node in self._asked or node in self._listed:
                return None
            self._asked.add(node)
            return ListData(self._job, self.names, self._full)
        if node in self._asked or node in self._held or not self._files:
            return None
        self._asked.add(node)
        if self._question is None:
            self._question = FindInput(self._job, self._files, self._full)
        return self._question

    def overdue(self, now: float) -> None:
        """From time to time. Nodes that do not answer are not waited for any longer: what they have of the
        client's files is read elsewhere. Raises InputLost where files might be missing without them."""
        if not self._asked or self._full:
            self._waits_since = None
            return
        if self._waits_since is None:
            self._waits_since = now
        if now - self._waits_since < DATA_ANSWER_S_MAX:
            return
        if self._files is None:
            raise self.not_listed(min(self._asked))
        self._held.update(dict.fromkeys(self._asked, b""))
        self._asked.clear()
        self.version += 1

    def is_back(self, node: str) -> None:
        """Its link is another one: an answer that was due may be lost, and is asked for again."""
        self._asked.discard(node)

    def listed(self, answer: DataListed) -> None:
        """Raises what kept the node from looking."""
        if answer.node not in self._asked or self._files is not None:
            return
        self._asked.discard(answer.node)
        if answer.error is not None:
            error = from_report(answer.error)
            error.details["node"] = answer.node
            raise error
        self._listed[answer.node] = answer.found

    def found(self, answer: InputFound) -> bool:
        """Whether it was waited for."""
        if answer.node not in self._asked or self._files is None:
            return False
        self._asked.discard(answer.node)
        self._held[answer.node] = answer.held
        self._any_held = self._any_held or any(answer.held)
        self.version += 1
        return True

    def lost(self, node: str) -> bool:
        """The node has nothing any more; True if it had some. Raises InputLost where nobody knows what it
        would have listed."""
        due = node in self._asked
        self._asked.discard(node)
        had = self._held.pop(node, None)
        if self._files is None:
            if due or self._listed.pop(node, None) is not None:
                raise self.not_listed(node)
            return False
        if had is None:
            return False
        self._had.update((file, node) for file in _bits(had) if file >= self.client_files)
        self.version += 1
        return any(had)

    def not_listed(self, node: str) -> InputLost:
        """Without it files might be missing, and nobody would know."""
        return InputLost(
            f"node {node} is lost or silent, and may have some of {', '.join(self.names)}",
            cure="run the job again when the node is back, or has been taken out (cortex nodes)",
        )

    def settle(self, nodes: Iterable[str]) -> bool:
        """When all have said what they list: True, and the files are known. `nodes` are here. Raises
        DataConflict and InputError."""
        if self._files is not None or self._asked:
            return False
        here = list(nodes)
        if not here:
            return False  # the first that comes is asked
        self.data_files = tuple(self._merged(place, name, here) for place, name in enumerate(self.names))
        self._files = (*self._client, *(file for found in self.data_files for file in found))
        return True

    def planned(self, plan: InputPlan) -> None:
        """A plan was accepted: its files have their ids, whatever an earlier life of the server had
        listed."""
        count = 1 + max((file.client_file for file in plan.files), default=-1)
        if self._files is not None and count <= len(self._files):
            return
        files = [ClientFile("", 0, 0)] * max(count, self.client_files)
        files[: self.client_files] = self._client
        for file in plan.files:
            if file.client_file >= self.client_files:
                files[file.client_file] = ClientFile(
                    file.path, file.size_bytes, file.modified_ns, file.fingerprint
                )
        self.data_files = ()
        self._files, self._question = tuple(files), None
        self._asked.clear()
        self._listed.clear()

    @property
    def settled(self) -> bool:
        """Nothing is waited for: the plan may be made."""
        return self._files is not None and not self._asked

    @property
    def matters(self) -> bool:
        """Is it, or was it, for some file of account which node reads it?"""
        return bool(self.names) or self._any_held

    def _merged(self, place: int, name: str, here: list[str]) -> tuple[ClientFile, ...]:
        """The files of one data name, whichever node has them."""
        first: dict[str, tuple[ClientFile, str]] = {}
        for node, found in sorted(self._listed.items()):
            for file in found[place]:
                known = first.setdefault(file.path, (file, node))
                if (known[0].size_bytes, known[0].fingerprint) != (file.size_bytes, file.fingerprint):
                    raise DataConflict(
                        f"{file.path} is one file on node {known[1]} and another one on node {node}",
                        details={
                            f"on {known[1]}": f"{known[0].size_bytes} bytes, {known[0].fingerprint.hex()}",
                            f"on {node} ": f"{file.size_bytes} bytes, {file.fingerprint.hex()}",
                        },
                        cure="give different files different names, or make the copies equal",
                    )
        if not first:
            looked = sorted(self._listed)
            raise InputError(
                f"{name} names no file on any node"
                if looked
                else f"{name} names files of the nodes, and no node has data roots",
                details={"input": name, "looked at": ", ".join(looked[:_NODES_SHOWN] or here[:_NODES_SHOWN])},
                cure="check the name: it is relative to the folders that nodes were started with"
                " (cortex node --data DIR)",
            )
        return tuple(first[path][0] for path in sorted(first))

    # --- who has what ---

    def sets(self) -> tuple[list[tuple[str, ...]], array[int]]:
        """Who has which file, each set of nodes once: (sets, the number of each file's set)."""
        files = len(self._files or ())
        members: list[tuple[str, ...]] = [()]
        set_of = array("I", bytes(4 * files))
        for node, held in sorted(self._held.items()):
            with_node: dict[int, int] = {}  # a set -> the same and this node
            for file in _bits(held[: (files + 7) // 8]):
                if file < files:
                    before = set_of[file]
                    after = with_node.get(before)
                    if after is None:
                        after = with_node[before] = len(members)
                        members.append((*members[before], node))
                    set_of[file] = after
        return members, set_of

    def who_has_most(self) -> tuple[str, ...]:
        """The nodes with the most of the files: where the plan is best made."""
        counts = {node: int.from_bytes(held, "little").bit_count() for node, held in self._held.items()}
        most = max(counts.values(), default=0)
        return tuple(sorted(node for node, count in counts.items() if count == most)) if most else ()

    def has_alone(self, node: str) -> bool:
        """Is there a file that nobody else has, the client neither, or may there be?"""
        if self.names and (node in self._asked or (self._files is None and node in self._listed)):
            return True  # what it has to say is waited for, or what the others have
        if not any(self._held.get(node, b"")):
            return False
        members, set_of = self.sets()
        alone = {number for number, each in enumerate(members) if each == (node,)}
        return any(number in alone for number in set_of[self.client_files :])

    def lost_with(self, file: int) -> str:
        """The node that had this file last; "" if none is known."""
        return self._had.get(file, "")


def _bits(held: bytes) -> Iterable[int]:
    for place, byte in enumerate(held):
        if byte:
            for bit in range(8):
                if byte >> bit & 1:
                    yield 8 * place + bit
