"""A command's connection to the server of a cluster: which identity it shows, and one question at a time.

Blocking, without Twisted. Whoever started the server shows the admin's identity of its home; others the
one that ``cortex login`` left in theirs. Threads do not share one.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, TypeVar

from cortex.errors import (
    CortexError,
    InternalError,
    NotTrusted,
    ProtocolError,
    StateFailed,
    Unreachable,
    UsageError,
    from_report,
)
from cortex.ids import Role
from cortex.limits import ANSWER_S_MAX, RENEW_RETRY_S
from cortex.private_files import lock_file
from cortex.wire.blocking_tls import connect
from cortex.wire.framing import BlockingConnection
from cortex.wire.identity import Identity, load_identity
from cortex.wire.join import Endpoint, parse_endpoint
from cortex.wire.messages import CertificateRenewed, ClientHello, Message, Refused, ServerHello
from cortex.wire.permissions import union_to
from cortex.wire.versions import check_versions, local_versions

if TYPE_CHECKING:
    from cortex.wire.renewal import Renewal

A = TypeVar("A", bound=Message)
CLIENT_FOLDER = "client"
_ADMIN_FOLDER = "admin"  # as `cortex.wire.server_home` has it, which imports the certificates' library
_RENEW_LOCK = "renew.lock"
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
    """`server` "" is the one the identity was made at. Raises UsageError, Unreachable, NotTrusted.

    When two thirds of the certificate's life are over it is replaced, here and on the disk, and the
    connection goes on. (The admin's in a server's home is renewed by the server.)
    """

    def __init__(self, home: str, server: str = "") -> None:
        self.identity, self._folder = own_identity(home, server)
        self._renewal: Renewal | None = None
        self._renew_at = self.identity.renew_at
        self.endpoint: Endpoint = parse_endpoint(server or self.identity.server, "the server")
        sock = connect(self.identity, self._folder, self.endpoint)
        self._connection: BlockingConnection[Any] = BlockingConnection(sock, union_to(self.identity.role))
        try:
            hello = self.ask(ClientHello(local_versions()), ServerHello)
            check_versions(hello.versions, local_versions(), "the server")
            self.hello = hello
            self._renew()
            self._wait_for_renewal()  # a command may be over before it would come by the way
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
            self._renew()
            try:
                said = self._take(left_s)
            except TimeoutError:
                if deadline is not None and time.monotonic() >= deadline:
                    raise
                continue
            if said is not None:
                return said

    def _take(self, timeout_s: float) -> Any:
        """The next message; None for one that is not for the caller."""
        try:
            said = self._connection.receive(timeout_s)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            raise self._gone() from error
        if said is None:
            raise self._gone()
        if isinstance(said, Refused):
            if self.identity.expired(time.time()):
                raise self._gone()  # another connection may show a newer certificate
            if self._renewal is not None and said.error.code == InternalError.code:
                self._not_renewed(said.error.message)  # the link stays, and with it what it is for
                return None
            raise from_report(said.error)
        if isinstance(said, CertificateRenewed):
            self._renewed(said)
            return None
        return said

    def _renew(self) -> None:
        """Ask for another certificate, when it is time."""
        if (
            self._renewal is None
            and time.time() >= self._renew_at
            and os.path.basename(self._folder) != _ADMIN_FOLDER
        ):
            from cortex.wire.renewal import Renewal  # the certificates' library: a tenth of a second

            self._renewal = Renewal(self.identity)
            self.send(self._renewal.request)

    def _wait_for_renewal(self) -> None:
        """What comes in the way is said, and keeps no command from its work: a third of its life is left."""
        try:
            while self._renewal is not None:
                self._take(ANSWER_S_MAX)
        except Unreachable:
            raise
        except TimeoutError:
            _warn("the server has not renewed the certificate yet")
        except CortexError as error:
            self._not_renewed(error.message)

    def _not_renewed(self, why: str) -> None:
        self._renewal, self._renew_at = None, time.time() + RENEW_RETRY_S
        _warn(f"the certificate was not renewed: {why}")

    def _renewed(self, answer: CertificateRenewed) -> None:
        """Show it from the next connection on, of this process or another."""
        from cortex.wire.identity import save_identity

        renewal, self._renewal = self._renewal, None
        if renewal is None:
            raise ProtocolError("the server sent a certificate that nobody had asked for")
        self.identity = renewal.finish(answer)
        self._renew_at = self.identity.renew_at
        lock = -1
        try:
            lock = lock_file(os.path.join(self._folder, _RENEW_LOCK), "another command saves one")
            save_identity(self._folder, self.identity)
        except StateFailed as error:
            _warn(f"the renewed certificate could not be kept in {self._folder}: {error.message}")
        except UsageError as error:
            if lock >= 0:  # else another command keeps one that is as good
                _warn(f"the renewed certificate could not be kept: {error.message}")
        finally:
            if lock >= 0:
                os.close(lock)

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


def _warn(said: str) -> None:
    print(f"warning: {said}", file=sys.stderr, flush=True)
