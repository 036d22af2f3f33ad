"""Who may come in, and what each role may send: counts, sets and one table."""

from __future__ import annotations

from typing import get_args

import pytest

from cortex.errors import NotAllowed, ProtocolError
from cortex.ids import Role
from cortex.limits import STRANGERS_MAX, STRANGERS_PER_ADDRESS_MAX
from cortex.wire import messages as m
from cortex.wire.authority import Peer
from cortex.wire.framing import FrameDecoder, encode_frame
from cortex.wire.gate import Members, Strangers, neighbourhood
from cortex.wire.permissions import MAY_HEAR, MAY_SEND, not_allowed, union_from, union_to

NODE = Peer(Role.NODE, "n0123456789ab", "k0123456789ab", 1, 0.0)


def test_one_address_cannot_fill_the_door() -> None:
    strangers = Strangers()
    for _ in range(STRANGERS_PER_ADDRESS_MAX):
        assert strangers.may_enter("10.0.0.1")
        strangers.entered("10.0.0.1")
    assert not strangers.may_enter("10.0.0.1")
    assert strangers.may_enter("10.0.0.2")
    strangers.left("10.0.0.1")
    assert strangers.may_enter("10.0.0.1")


def test_many_addresses_cannot_fill_the_memory() -> None:
    strangers = Strangers()
    for number in range(STRANGERS_MAX):
        strangers.entered(f"10.0.{number // 256}.{number % 256}")
    assert not strangers.may_enter("192.0.2.1")
    for number in range(STRANGERS_MAX):
        strangers.left(f"10.0.{number // 256}.{number % 256}")
    assert (strangers.total, len(strangers._counts)) == (0, 0)


def test_an_ipv6_host_has_one_address_here() -> None:
    assert neighbourhood("2001:db8::1") == neighbourhood("2001:db8::ffff:1")
    assert neighbourhood("2001:db8::1") != neighbourhood("2001:db8:0:1::1")
    assert neighbourhood("::ffff:10.0.0.1") == neighbourhood("10.0.0.1")
    assert neighbourhood("fe80::1%eth0") == neighbourhood("fe80::1")
    assert neighbourhood("a path") == "a path"


def test_members_are_of_the_cluster_in_a_role_and_not_revoked() -> None:
    members = Members("k0123456789ab", ["n000000000000"])
    members.check(NODE, (Role.NODE,))
    with pytest.raises(NotAllowed, match="it is for a client or admin"):
        members.check(NODE, (Role.CLIENT, Role.ADMIN))
    with pytest.raises(NotAllowed, match="another cluster"):
        Members("k000000000000").check(NODE, (Role.NODE,))
    with pytest.raises(NotAllowed, match="without certificate"):
        members.check(None, (Role.NODE,))
    members.revoke(NODE.id)
    with pytest.raises(NotAllowed, match="revoked"):
        members.check(NODE, (Role.NODE,))


# --- the table ---

CSR = b"c" * 10
SAMPLES: list[m.Message] = [
    m.Join("t0", CSR, b"p", {}),
    m.NodeHello("n", "1", 1, 1, {}),
    m.Heartbeat("n", "1", (), 0, 0),
    m.ClientHello({}),
    m.CancelJob("j"),
    m.JobReceived("j"),
    m.BeginPut("big", ".csv"),
    m.FinishPut(1),
    m.PartStored("n", "p", 0),
    m.RenewCertificate(CSR),
    m.CreateToken(Role.NODE, 1.0, 1),
    m.ListTokens(),
    m.RevokeToken("t"),
    m.RevokePeer("n"),
    m.KillCluster(),
]


@pytest.mark.parametrize("role", [None, Role.NODE, Role.CLIENT, Role.ADMIN])
@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: type(message).__name__)
def test_a_role_sends_what_the_table_says_and_nothing_else(role: Role | None, message: m.Message) -> None:
    decoder: FrameDecoder[m.Message] = FrameDecoder(
        union_from(role), explain=lambda tag: not_allowed(role, tag)
    )
    frame = encode_frame(message)
    if type(message) in MAY_SEND[role]:
        assert list(decoder.feed(frame)) == [message]
        return
    with pytest.raises(NotAllowed, match=f"may not send {type(message).__name__}"):
        list(decoder.feed(frame))


def test_the_table() -> None:
    names = {role: {message.__name__ for message in messages} for role, messages in MAY_SEND.items()}
    admin_only = {
        "CreateToken",
        "ListTokens",
        "RevokeToken",
        "RevokePeer",
        "DrainNode",
        "KillCluster",
        "GetAudit",
    }
    assert names[None] == {"Join"}
    assert names[Role.NODE] == {message.__name__ for message in get_args(m.FromNode)} | {
        "RenewCertificate",
        "Examined",
    }
    assert not names[Role.NODE] & names[Role.CLIENT] - {"RenewCertificate"}
    assert names[Role.ADMIN] - names[Role.CLIENT] == admin_only
    assert not names[Role.CLIENT] & (admin_only | {"Join"})
    assert names[Role.MONITOR] == {"ClientHello", "GetStatus", "GetDiagnosis", "RenewCertificate"}
    assert Role.SERVER not in MAY_SEND
    with pytest.raises(NotAllowed):
        union_from(Role.SERVER)


@pytest.mark.parametrize("role", [None, Role.NODE, Role.CLIENT, Role.ADMIN, Role.MONITOR])
def test_every_role_hears_refusals(role: Role | None) -> None:
    assert m.Refused in MAY_HEAR[role]
    decoder: FrameDecoder[m.Message] = FrameDecoder(union_to(role))
    refused = m.Refused(NotAllowed("no").report())
    assert list(decoder.feed(encode_frame(refused))) == [refused]


def test_what_no_role_sends_is_no_message() -> None:
    decoder: FrameDecoder[m.Message] = FrameDecoder(
        union_from(Role.NODE), explain=lambda tag: not_allowed(Role.NODE, tag)
    )
    with pytest.raises(ProtocolError, match="is no message") as caught:
        list(decoder.feed(encode_frame(m.Stop())))
    assert not isinstance(caught.value, NotAllowed)
    with pytest.raises(ProtocolError):  # and stays refused
        list(decoder.feed(encode_frame(m.RenewCertificate(CSR))))


def test_every_union_of_the_table_tells_its_messages_apart() -> None:
    for messages in (*MAY_SEND.values(), *MAY_HEAR.values()):
        names = [message.__name__ for message in messages]
        assert len(names) == len(set(names))
