"""What the server's home holds of the cluster: its authority, the server's identity, and the admin's.

    <home>/authority/authority.pem    key and certificate of the authority
    <home>/server/identity.pem        the server's own
    <home>/admin/identity.pem         for commands of whoever started the server

All are made on first start. The authority is made once and never again: a home without it is a new
cluster. The two identities are issued again when they are missing, due, or name another address.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from cortex.errors import StateFailed
from cortex.ids import Role, new_cluster_id, new_peer_id
from cortex.private_files import read_private, write_private
from cortex.wire.authority import Authority, make_key
from cortex.wire.identity import Identity, load_identity, make_identity, save_identity
from cortex.wire.join import Endpoint

AUTHORITY_FILE: Final = os.path.join("authority", "authority.pem")
SERVER_FOLDER: Final = "server"
ADMIN_FOLDER: Final = "admin"


@dataclass(frozen=True, slots=True)
class ServerHome:
    authority: Authority
    server: Identity
    admin: Identity


def open_server_home(home: str, endpoint: Endpoint, now: float) -> ServerHome:
    """Load the cluster in `home`, making what is missing; `endpoint` is where the server is reached.

    One process at a time: the caller holds the home's lock. Call it again once a day, for renewals.
    Raises UsageError when others can reach a part of it, StateFailed when a part is damaged.
    """
    path = os.path.join(home, AUTHORITY_FILE)
    data = read_private(path)
    if data is None:
        authority = Authority.make(new_cluster_id(), now)
        write_private(path, authority.to_pem())
    else:
        authority = Authority.from_pem(data)
    return ServerHome(
        authority,
        _identity(authority, os.path.join(home, SERVER_FOLDER), Role.SERVER, endpoint, now),
        _identity(authority, os.path.join(home, ADMIN_FOLDER), Role.ADMIN, endpoint, now),
    )


def _identity(authority: Authority, folder: str, role: Role, endpoint: Endpoint, now: float) -> Identity:
    old = load_identity(folder)
    if old is not None and (old.cluster, old.role) != (authority.cluster, role):
        raise StateFailed(
            f"{folder!r} holds an identity of another cluster ({old.cluster})",
            cure="each server has a home of its own: name another --home",
        )
    if old is not None and not old.renew_due(now):
        if old.server == str(endpoint):
            return old
        new = old.at(str(endpoint))
    else:
        key, peer = make_key(), new_peer_id(role) if old is None else old.id
        certificate = authority.issue(key.public_key(), role, peer, now)
        new = make_identity(key, certificate, authority.certificate, str(endpoint))
    save_identity(folder, new)
    return new
