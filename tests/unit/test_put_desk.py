"""The server's desk for puts: whose is whose, and that nothing of one is left when it has ended."""

from __future__ import annotations

from typing import Any

import pytest

from cortex.errors import ProtocolError
from cortex.limits import PUT_OPEN_S_MAX
from cortex.server.input_relay import InputRelay
from cortex.server.put_desk import PutDesk
from cortex.wire import messages as m

SHA = "0" * 64
FREE = 1 << 40


class Said:
    """A desk with a real relay, and all that they say."""

    def __init__(self) -> None:
        self.now = 0.0
        self.to_node: list[tuple[str, Any]] = []
        self.to_client: list[tuple[str, Any]] = []
        self.refused: list[tuple[str, str]] = []
        self.noted: list[tuple[str, str, str]] = []
        self.relay = InputRelay(self._node, self._client, lambda job: False)
        self.desk = PutDesk(
            lambda: self.now,
            self.relay,
            self._node,
            self._client,
            lambda client, refused: self.refused.append((client, refused.error.code)),
            lambda client, request, error: self.noted.append((client, request.name, error)),
        )

    def _node(self, node: str, message: Any) -> None:
        self.to_node.append((node, message))

    def _client(self, client: str, message: Any) -> None:
        self.to_client.append((client, message))

    def begun(self, client: str, name: str, nodes: tuple[str, ...] = ("a",)) -> str:
        self.desk.begin(client, m.BeginPut(name, ".csv"), nodes)
        put = str(self.to_node[-1][1].put)
        for node in nodes:
            self.desk.node_said(m.PutOpened(node, put, FREE))
        assert self.to_client[-1] == (client, m.PutBegun(put, nodes))
        return put


def test_a_part_goes_from_its_client_to_its_node_and_gets_its_name() -> None:
    said = Said()
    put = said.begun("ann", "big")
    said.desk.said("ann", m.OfferPart(0, 5, SHA))
    assert said.to_node[-1] == ("a", m.KeepPart(put, 0, 5, SHA))
    said.relay.read(m.NodeReads("a", m.ReadInput(0, put, 0, 0, 5)))
    client, read = said.to_client[-1]
    assert (client, read.job, read.file) == ("ann", put, 0)
    assert said.relay.owes(put, "a")
    with pytest.raises(ProtocolError):
        said.relay.answer("bob", m.InputBytes(read.read, b"other"))
    said.relay.answer("ann", m.InputBytes(read.read, b"bytes"))
    assert said.to_node[-1] == ("a", m.InputBytes(0, b"bytes"))
    assert not said.relay.owes(put, "a")
    said.desk.node_said(m.PartStored("a", put, 0))
    assert said.to_client[-1] == ("ann", m.PartKept(0, ("a",)))
    said.desk.said("ann", m.FinishPut(1))
    assert said.to_node[-1] == ("a", m.NameParts(put, 1, ".csv"))
    said.desk.node_said(m.PartsNamed("a", put))
    assert said.to_node[-1] == ("a", m.EndPut(put, undo=False))
    assert said.to_client[-1] == ("ann", m.PutDone({"a": (0,)}))
    assert said.noted == [("ann", "big", "")]
    said.desk.client_lost("ann")  # it has what it wanted
    assert said.to_node[-1] == ("a", m.EndPut(put, undo=False))


def test_one_name_is_put_by_one_client_at_a_time() -> None:
    said = Said()
    put = said.begun("ann", "big")
    said.begun("bob", "other")
    said.desk.begin("eve", m.BeginPut("big", ".csv"), ("a",))
    assert said.refused == [("eve", "usage")]
    with pytest.raises(ProtocolError):
        said.desk.begin("ann", m.BeginPut("more", ".csv"), ("a",))
    with pytest.raises(ProtocolError):
        said.desk.said("eve", m.FinishPut(1))
    said.desk.client_lost("ann")
    assert said.to_node[-1] == ("a", m.EndPut(put, undo=True))
    assert said.noted[-1] == ("ann", "big", "the client's connection ended")
    said.begun("eve", "big")


def test_nothing_of_a_put_that_has_ended_is_done() -> None:
    said = Said()
    put = said.begun("ann", "big")
    said.desk.said("ann", m.OfferPart(0, 5, SHA))
    said.desk.client_lost("ann")
    before = list(said.to_client)
    said.relay.read(m.NodeReads("a", m.ReadInput(7, put, 0, 0, 5)))
    node, answer = said.to_node[-1]
    assert (node, answer.read, answer.error.code) == ("a", 7, "not-allowed")
    said.desk.node_said(m.PartStored("a", put, 0))
    said.desk.node_lost("a")
    assert said.to_client == before


def test_the_last_node_that_is_lost_ends_it() -> None:
    said = Said()
    put = said.begun("ann", "big", ("a", "b"))
    said.desk.said("ann", m.OfferPart(0, 5, SHA))
    said.desk.node_lost("a")
    assert said.to_node[-1] == ("b", m.KeepPart(put, 0, 5, SHA))
    said.desk.node_lost("b")
    assert said.refused == [("ann", "put")]


def test_time_is_told() -> None:
    said = Said()
    said.desk.begin("ann", m.BeginPut("big", ".csv"), ("a",))
    said.desk.tick()
    assert said.refused == []
    said.now = PUT_OPEN_S_MAX
    said.desk.tick()
    assert said.refused == [("ann", "put")]
