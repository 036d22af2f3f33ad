"""TLS for a process without a reactor: a command line's connection to its server. Standard library only.

`connect` gives a socket for `cortex.wire.framing.BlockingConnection`. TLS 1.3 only; the cluster's
authority is the only one trusted, for the server's logical name; nothing of the system's trust store,
its environment or a session of before is used.

OpenSSL works on memory here and the socket on its own, for two reasons: a poll of the socket then says
what it means, and one thread may receive while others send, which OpenSSL's objects do not allow.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from typing import Any

from cortex.errors import NotTrusted, Unreachable
from cortex.ids import server_name
from cortex.limits import DIAL_S_MAX, KIB
from cortex.wire.identity import FILE_NAME, Identity
from cortex.wire.join import Endpoint
from cortex.wire.tls_failures import explain

_CHUNK_BYTES = 256 * KIB
_RECORD_BYTES_MAX = 16 * KIB + 256 + 5  # RFC 8446, 5.2: a TLSCiphertext and its header


class TlsSocket:
    """A connected TLS stream that behaves as a blocking socket. Owns the socket under it.

    What `recv_into` does not hand out it does not hold back either: but for the beginning of a record,
    nothing waits that a poll of `fileno` would not show.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, name: str, who: str) -> None:
        self._sock = sock
        self._who = who
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._tls_lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._ended = False

    def handshake(self, deadline: float) -> None:
        """Raises NotTrusted, or OSError (TimeoutError at `deadline`, by the monotonic clock)."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
            except ssl.SSLError as error:
                self._flush()  # the alert that tells the other end why
                raise explain(str(error), self._who) from error
            else:
                self._flush()
                self._sock.settimeout(None)
                return
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("the TLS handshake takes too long")
            self._sock.settimeout(left_s)
            self._incoming.write(self._receive(_CHUNK_BYTES))

    def setblocking(self, flag: bool) -> None:
        self._sock.setblocking(flag)

    def fileno(self) -> int:
        return self._sock.fileno()

    def sendall(self, data: bytes) -> None:
        with self._send_lock, memoryview(data) as view:
            sent = 0
            while sent < len(view):
                with self._tls_lock:
                    sent += self._tls.write(view[sent : sent + _CHUNK_BYTES])
                self._sock.sendall(self._outgoing_bytes())

    def recv_into(self, buffer: bytearray) -> int:
        """Wait for bytes once; BlockingIOError when they held nothing for the caller. The buffer must be
        larger than two records.

        Raises NotTrusted when the server says that it does not take our certificate, which TLS 1.3 lets
        it say only now.
        """
        if self._ended:
            return 0
        # With these bytes a record may be complete that began with earlier ones, and all must fit: a poll
        # would not show what is left.
        data = self._sock.recv(len(buffer) - _RECORD_BYTES_MAX)
        with self._tls_lock:
            if data:
                self._incoming.write(data)
            else:
                self._incoming.write_eof()
            count = self._read(buffer)
        if self._ended:
            self._say_end()
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RD)  # a poll shows the end from now on
        elif self._outgoing.pending and self._send_lock.acquire(blocking=False):
            # an answer to a key update; whoever is sending takes it along
            try:
                self._flush()
            finally:
                self._send_lock.release()
        return count

    def shutdown(self, how: int) -> None:
        self._say_end()
        self._sock.shutdown(how)

    def close(self) -> None:
        self._sock.close()

    def _read(self, buffer: bytearray) -> int:
        count = 0
        with memoryview(buffer) as view:
            while count < len(view):
                try:
                    # into a buffer, so a count is returned: typeshed only knows of bytes
                    more: Any = self._tls.read(len(view) - count, view[count:])
                except ssl.SSLWantReadError:
                    if not count:
                        raise BlockingIOError from None
                    break
                except ssl.SSLEOFError:  # it has died, and said no end
                    more = 0
                except ssl.SSLError as error:
                    raise explain(str(error), self._who) from error
                if not more:
                    self._ended = True
                    break
                count += more
        return count

    def _receive(self, size: int) -> bytes:
        data = self._sock.recv(size)
        if not data:
            raise ConnectionResetError("the connection was closed during the TLS handshake")
        return data

    def _say_end(self) -> None:
        """Tell the other end that no more will come, unless that would take time."""
        if not self._send_lock.acquire(blocking=False):
            return
        try:
            with contextlib.suppress(ssl.SSLError), self._tls_lock:
                self._tls.unwrap()
            with contextlib.suppress(OSError):
                self._sock.send(self._outgoing_bytes(), socket.MSG_DONTWAIT)
        finally:
            self._send_lock.release()

    def _outgoing_bytes(self) -> bytes:
        with self._tls_lock:
            return self._outgoing.read()

    def _flush(self) -> None:
        self._sock.sendall(self._outgoing_bytes())


def connect(identity: Identity, folder: str, endpoint: Endpoint, timeout_s: float = DIAL_S_MAX) -> TlsSocket:
    """Connect to the server of `identity`, which was loaded from `folder`.

    Raises Unreachable, or NotTrusted for a server that is not the cluster's or does not take us. Whether
    it takes us shows in its answer to a hello: `TlsSocket.recv_into` raises NotTrusted as well.
    """
    deadline = time.monotonic() + timeout_s
    context = _context(identity, folder)
    try:
        sock = socket.create_connection((endpoint.host, endpoint.port), timeout_s)
    except OSError as error:
        raise _unreachable(endpoint, error) from error
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = TlsSocket(sock, context, server_name(identity.cluster), f"the server at {endpoint}")
        tls.handshake(deadline)
    except OSError as error:
        sock.close()
        raise _unreachable(endpoint, error) from error
    except BaseException:
        sock.close()
        raise
    return tls


def _context(identity: Identity, folder: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=identity.authority_pem)
    try:
        context.load_cert_chain(os.path.join(folder, FILE_NAME))
    except (OSError, ssl.SSLError) as error:
        raise NotTrusted(
            f"the identity in {folder!r} cannot be used: {error}", cure="join the cluster again"
        ) from error
    return context


def _unreachable(endpoint: Endpoint, error: OSError) -> Unreachable:
    return Unreachable(
        f"no connection to the server at {endpoint}: {error.strerror or error}",
        cure="is the server running there, and is the way to it open?",
    )
