"""A command's connection to the server of a cluster: which identity it shows, and one question at a time.

Blocking, without Twisted. Whoever started the server shows the admin's identity of its home; others the
one that ``cortex login`` left in theirs. Threads do not share one.
"""

from __future__ import annotations

import os
import time
from typing import Any, TypeVar

from cortex.errors import NotTrusted, ProtocolError, Unreachable, UsageError, from_report
from cortex.ids import Role
from cortex.limits import ANSWER_S_MAX
from cortex.wire.blocking_tls import connect
from cortex.wire.framing import BlockingConnection
from cortex.wire.identity import Identity, load_identity
from cortex.wire.join import Endpoint, parse_endpoint
from cortex.wire.messages import ClientHello, Message, Refused, ServerHello
from cortex.wire.permissions import union_to
from cortex.wire.versions import check_versions, local_versions

A = TypeVar("A", bound=Message)
CLIENT_FOLDER = "client"
_ADMIN_FOLDER = "admin"  # as `cortex.wire.server_home` has it, which imports the certificates' library
_WAKE_S = 1.0
_LOGIN = "cortex login HOST:PORT/TOKEN.CAHASH, with a line from: cortex token create --role client"


def own_identity(home: str, server: str = "") -> tuple[Identity, str]:
    """(identity, its folder) that this user's commands show: of one who started a server here and is a client
    of another as well, the one made at `server`, else the admin's. Raises UsageError when there is none."""
    folders = [os.path.join(home, name) for name in (_ADMIN_FOLDER, CLIENT_FOLDER)]
    found = [(identity, folder) for folder in folders if (identity := load_identity(folder)) is not None]
    for identity, folder in sorted(found, key=lambda each: each[0].server != server):
        if identity.expired(time.time()):
            raise NotTrusted(
                f"the certificate in {folder} has expired",
                cure=_LOGIN,
            )
        return identity, folder
    raise UsageError(
        f"no identity in {home}: this machine is not logged in to a cluster",
        cure=_LOGIN,
    )


class ClusterConnection:
    """`server` "" is the one the identity was made at. Raises UsageError, Unreachable, NotTrusted."""

    def __init__(self, home: str, server: str = "") -> None:
        self.identity, folder = own_identity(home, server)
        self.endpoint: Endpoint = parse_endpoint(server or self.identity.server, "the server")
        sock = connect(self.identity, folder, self.endpoint)
        self._connection: BlockingConnection[Any] = BlockingConnection(sock, union_to(self.identity.role))
        try:
            hello = self.ask(ClientHello(local_versions()), ServerHello)
            check_versions(hello.versions, local_versions(), "the server")
        except BaseException:
            self.close()
            raise

    @property
    def is_admin(self) -> bool:
        return self.identity.role is Role.ADMIN

    def ask(self, question: Message, answer: type[A]) -> A:
        """Send a message and wait for its answer. Raises what the server refused it with."""
        self.send(question)
        try:
            said = self.receive(ANSWER_S_MAX)
        except TimeoutError as error:
            raise Unreachable(
                f"the server at {self.endpoint} did not answer in {ANSWER_S_MAX:g} s",
                cure="is it overloaded or stopped? its log says more",
            ) from error
        if not isinstance(said, answer):
            raise ProtocolError(f"the server answered {type(question).__name__} with {type(said).__name__}")
        return said

    def send(self, message: Message) -> None:
        """Raises Unreachable when the server is gone."""
        try:
            self._connection.send(message)
        except OSError as error:
            raise self._gone() from error

    def receive(self, timeout_s: float | None = None) -> Any:
        """The next message. Raises TimeoutError, Unreachable when the server is gone, and what it refuses
        us with. Wakes up now and then, so that Ctrl-C is seen."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = _WAKE_S if deadline is None else min(_WAKE_S, max(0.0, deadline - time.monotonic()))
            try:
                said = self._connection.receive(left_s)
            except TimeoutError:
                if deadline is not None and time.monotonic() >= deadline:
                    raise
                continue
            except OSError as error:
                raise self._gone() from error
            if said is None:
                raise self._gone()
            if isinstance(said, Refused):
                raise from_report(said.error)
            return said

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> ClusterConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _gone(self) -> Unreachable:
        return Unreachable(
            f"the server at {self.endpoint} closed the connection", cure="is it still running? see its log"
        )
