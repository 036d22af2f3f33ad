"""Who may send what: one table, from which the decoder of every link to the server is made.

What a role may not send is no message on its link: it is refused while it is decoded, before any code
that could act on it. `None` is a peer without certificate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Union, get_args

from cortex.errors import NotAllowed
from cortex.ids import Role
from cortex.wire.messages import (
    CertificateRenewed,
    ClientHello,
    ClusterStatus,
    Diagnosis,
    Examine,
    Examined,
    FromNode,
    FromServer,
    FromServerAdmin,
    FromServerJoin,
    GetDiagnosis,
    GetStatus,
    Message,
    PeersRevoked,
    Refused,
    RenewCertificate,
    ServerHello,
    ToNode,
    ToServer,
    ToServerAdmin,
    ToServerJoin,
)

_CLIENT: Final = (*get_args(ToServer), GetDiagnosis, RenewCertificate)
_TO_CLIENT: Final = (*get_args(FromServer), Diagnosis, CertificateRenewed)

MAY_SEND: Final[Mapping[Role | None, tuple[type[Message], ...]]] = {
    None: (ToServerJoin,),
    Role.NODE: (*get_args(FromNode), Examined, RenewCertificate),
    Role.CLIENT: _CLIENT,
    Role.ADMIN: (*_CLIENT, *get_args(ToServerAdmin)),
    Role.MONITOR: (ClientHello, GetStatus, GetDiagnosis, RenewCertificate),
}
"""role -> the messages that the server takes from it. The server itself dials nobody."""

MAY_HEAR: Final[Mapping[Role | None, tuple[type[Message], ...]]] = {
    None: get_args(FromServerJoin),
    Role.NODE: (*get_args(ToNode), Examine, CertificateRenewed, PeersRevoked, Refused),
    Role.CLIENT: _TO_CLIENT,
    Role.ADMIN: (*_TO_CLIENT, *get_args(FromServerAdmin)),
    Role.MONITOR: (ServerHello, ClusterStatus, Diagnosis, CertificateRenewed, Refused),
}
"""role -> the messages that it takes from the server."""

_CURES: Final = {
    None: "join first: cortex login (or cortex node --join) with a line from: cortex token create",
    Role.MONITOR: "a monitor only looks; for more: cortex login, with a line of role client",
    Role.CLIENT: "only whoever started the server may: run the command there, or with a token of role admin",
}


def union_from(role: Role | None) -> Any:
    """The union that the server decodes from this role. Raises NotAllowed if it may send nothing."""
    if role not in MAY_SEND:
        raise NotAllowed(f"a {_who(role)} has no business at this port")
    return Union[MAY_SEND[role]]  # noqa: UP007 (the members are in a tuple)


def union_to(role: Role | None) -> Any:
    """The union that a process of this role decodes from the server."""
    return Union[MAY_HEAR[role]]  # noqa: UP007


def not_allowed(role: Role | None, tag: str) -> NotAllowed | None:
    """The error for a message named `tag` that a peer of this role sent; None if no role may send it, or this
    one may, and it is no message for another reason."""
    may = {message.__name__ for message in MAY_SEND.get(role, ())}
    if tag in may or all(tag != m.__name__ for messages in MAY_SEND.values() for m in messages):
        return None
    return NotAllowed(f"a {_who(role)} may not send {tag}", cure=_CURES.get(role, ""))


def _who(role: Role | None) -> str:
    return "peer without certificate" if role is None else role.value
