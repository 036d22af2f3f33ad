"""Messages over Twisted transports: one protocol for every link that a reactor holds.

`MessageProtocol` frames and unframes, closes a peer that says nothing, says too much or does not
read, and tells its owner of each message and of the end. `listen_unix` opens the local door: a
socket of mode 0600 in a folder of mode 0700, and every peer's uid is checked before its first byte
is decoded. The reactor is an argument and never imported here.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile

from cortex.errors import CortexError, ProtocolError, UsageError
from cortex.limits import (
    CLOSE_S_MAX,
    FRAME_BYTES_MAX,
    HELLO_BYTES_MAX,
    HELLO_S_MAX,
    LOG_FILE_BYTES,
    LOG_FILES_KEPT,
    UNIX_PATH_BYTES_MAX,
    UNSENT_BYTES_MAX,
)
from cortex.private_files import check_private_folder
from cortex.units import format_bytes
from cortex.wire.framing import FrameDecoder, encode_frame
from cortex.wire.messages import Message, Refused

M = TypeVar("M")
_log = Logger()
_UCRED = struct.Struct("3i")  # Linux: pid, uid, gid
_XUCRED = struct.Struct("IIh2x16I")  # macOS and the BSDs: version, uid, number of groups, groups
_SOL_LOCAL, _LOCAL_PEERCRED = 0, 1


def peer_uid(sock: socket.socket) -> int:
    """The user that the other end of a connected unix socket runs as, as the kernel knows it."""
    if sys.platform.startswith("linux"):
        _pid, uid, _gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return int(uid)
    version, uid, *_ = _XUCRED.unpack(sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED.size))
    if version != 0:
        raise ProtocolError(f"the kernel's peer credentials have version {version}, not 0")
    return int(uid)


def use_monotonic_clock(reactor: Any) -> None:
    """Make `reactor` time its calls by the monotonic clock; call before the first `callLater`.

    Twisted times them by the wall clock: set back by an hour, it would stop ticks and timeouts for
    an hour.
    """
    reactor.seconds = time.monotonic


def begin_log(path: str = "") -> None:
    """Twisted's log, from warnings upwards and what cortex says itself, to standard error, or to a file of
    mode 0600 that is set aside when it has LOG_FILE_BYTES: the last LOG_FILES_KEPT are. Raises UsageError."""
    from twisted.logger import (
        FilteringLogObserver,
        LogLevel,
        LogLevelFilterPredicate,
        globalLogBeginner,
        textFileLogObserver,
    )

    levels = LogLevelFilterPredicate(defaultLogLevel=LogLevel.warn)
    levels.setLogLevelForNamespace("cortex", LogLevel.info)
    out: Any = sys.stderr
    if path:
        try:
            out = LogFile.fromFullPath(
                path, rotateLength=LOG_FILE_BYTES, defaultMode=0o600, maxRotatedFiles=LOG_FILES_KEPT
            )
        except OSError as error:
            raise UsageError(
                f"cannot write the log to {path!r}: {error.strerror or error}",
                cure="name a file in a folder that is there and that this user may write to: --log-file PATH",
            ) from error
    # zope's interfaces say nothing to mypy, hence the casts
    kept = FilteringLogObserver(cast(Any, textFileLogObserver(out)), [cast(Any, levels)])
    globalLogBeginner.beginLoggingTo([cast(Any, kept)], redirectStandardIO=False)


class MessageProtocol(Protocol, Generic[M]):
    """One end of a link; also its transport's push producer, so that it learns when to hold back.

    `clock` has `callLater` (a reactor, or `task.Clock` in tests). `received(protocol, message)` is
    called for each message, `lost(protocol, error)` once at the end: `error` says what the peer did
    wrong, or is None. Until `accept()` is called a frame may have HELLO_BYTES_MAX and the peer has
    HELLO_S_MAX; a peer that breaks a rule is sent Refused and closed. With `check_peer` another
    user's connection is closed before anything is read, and its owner never hears of it.
    """

    transport: Any

    def __init__(
        self,
        clock: Any,
        receive_union: Any,
        received: Callable[[MessageProtocol[M], M], None],
        lost: Callable[[MessageProtocol[M], CortexError | None], None],
        *,
        check_peer: bool = True,
        unsent_bytes_max: int = UNSENT_BYTES_MAX,
    ) -> None:
        self._clock = clock
        self._decoder: FrameDecoder[M] = FrameDecoder(receive_union, HELLO_BYTES_MAX)
        self._received = received
        self._lost = lost
        self._check_peer = check_peer
        self._unsent_bytes_max = unsent_bytes_max
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._paused = False
        self._closing = False
        self._unknown_to_owner = False
        self._error: CortexError | None = None
        self._timer: Any = None

    # --- what the owner calls ---

    def accept(self) -> None:
        """The peer is known: frames may be large, and it may be silent."""
        self._decoder.set_limit(FRAME_BYTES_MAX)
        self._stop_timer()

    @property
    def congested(self) -> bool:
        """True while the peer has not read what was sent: leave out what is only for show."""
        return self._paused

    def send(self, message: Message) -> None:
        """Send a message; nothing happens once the link is closing. Never blocks.

        A peer that leaves more than `unsent_bytes_max` unread is cut off: `lost` tells the owner.
        """
        if self._closing or self.transport is None:
            return
        frame = encode_frame(message)
        if not self._paused:
            self.transport.write(frame)
            return
        if self._unsent_bytes + len(frame) > self._unsent_bytes_max:
            self._end(
                ProtocolError(
                    f"the peer does not read: {format_bytes(self._unsent_bytes)} wait to be sent",
                    cure="is the process stopped or swapped out?",
                )
            )
            self.transport.abortConnection()
            return
        self._unsent.append(frame)
        self._unsent_bytes += len(frame)

    def close(self, last: Message | None = None) -> None:
        """Send `last`, then close; a peer that has not taken it in CLOSE_S_MAX is cut off."""
        if self._closing or self.transport is None:
            return
        if last is not None:
            self.send(last)
            if self._closing:
                return
        self._end(None)
        while self._unsent:
            self.transport.write(self._unsent.popleft())
        self.transport.loseConnection()
        self._timer = self._clock.callLater(CLOSE_S_MAX, self._abort)

    # --- what Twisted calls ---

    def connectionMade(self) -> None:
        if self._check_peer:
            uid = peer_uid(self.transport.getHandle())
            if uid != os.geteuid():
                _log.warn("a connection of user {uid} was refused", uid=uid)
                self._unknown_to_owner = self._closing = True
                self.transport.abortConnection()
                return
        self.transport.registerProducer(self, True)
        self._timer = self._clock.callLater(HELLO_S_MAX, self._hello_late)

    def dataReceived(self, data: bytes) -> None:
        if self._closing:
            return
        try:
            for message in self._decoder.feed(data):
                self._received(self, message)
                if self._closing:
                    return
        except ProtocolError as error:
            self._refuse(error)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stop_timer()
        self._closing = True
        self._unsent.clear()
        self._unsent_bytes = 0
        if self._unknown_to_owner:
            return
        if self._error is None and not self._decoder.at_boundary:
            self._error = ProtocolError("the connection ended inside a message: the peer process ended")
        if self._error is None and not isinstance(reason.value, ConnectionDone):
            self._error = self._explain_end(reason)
            _log.debug("a link ended: {reason}", reason=reason.getErrorMessage())
        self._lost(self, self._error)

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        while self._unsent and not self._paused and self.transport is not None:
            frame = self._unsent.popleft()
            self._unsent_bytes -= len(frame)
            self.transport.write(frame)

    def stopProducing(self) -> None:
        """The transport has ended; connectionLost follows."""

    # --- inside ---

    def _explain_end(self, _reason: Failure) -> CortexError | None:
        """What an end that nobody asked for means; None: the peer has ended, or the way to it."""
        return None

    def _hello_late(self) -> None:
        self._timer = None
        self._refuse(ProtocolError(f"no hello within {HELLO_S_MAX:g} s of connecting"))

    def _refuse(self, error: ProtocolError) -> None:
        if self._closing:
            return
        self.send(Refused(error.report()))
        if not self._closing:
            self.close()
            self._error = error

    def _end(self, error: CortexError | None) -> None:
        self._closing = True
        self._error = error
        self._stop_timer()
        if self.transport is not None:
            self.transport.unregisterProducer()

    def _abort(self) -> None:
        self._timer = None
        if self.transport is not None:
            self.transport.abortConnection()

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None


def listen_unix(reactor: Any, path: str, factory: Factory) -> Any:
    """Listen on a unix socket of mode 0600 at `path`, in a private folder; gives Twisted's port.

    Raises UsageError for a folder that others can enter, a path too long for a socket, or one that
    cannot be listened on.
    """
    if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
        raise UsageError(
            f"the socket path {path!r} has {len(os.fsencode(path))} bytes; a unix socket takes"
            f" {UNIX_PATH_BYTES_MAX}",
            cure="set TMPDIR to a folder with a shorter name",
        )
    check_private_folder(os.path.dirname(path))
    try:
        return reactor.listenUNIX(path, factory, mode=0o600)
    except CannotListenError as error:
        raise UsageError(f"cannot listen on the unix socket {path!r}: {error.socketError}") from error
