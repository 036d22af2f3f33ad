"""A client's, a server's and a node's parts of a job's files, joined without sockets, threads or a clock.

Work on the disk waits until it is stepped, and so do messages: a test chooses the order.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Any

from cortex.errors import CortexError
from cortex.server.blob_desk import BlobDesk
from cortex.storage.blob_store import BlobStore
from cortex.transfer.bundle_fetch import BundleFetch
from cortex.wire import messages as m


class Steps:
    """In the place of `WorkThread`: what is to be done, in order, when it is asked for."""

    def __init__(self) -> None:
        self.waiting: deque[Callable[[], None]] = deque()

    def run(self, work: Any, done: Any, failed: Any) -> None:
        def one() -> None:
            try:
                result = work()
            except CortexError as error:
                failed(error)
            else:
                done(result)

        self.waiting.append(one)

    def stop(self) -> None:
        self.waiting.clear()

    def step(self) -> bool:
        if self.waiting:
            self.waiting.popleft()()
            return True
        return False

    def all(self) -> None:
        while self.step():
            pass


class Desk:
    """A server's desk with its store in `folder`; what it says to nodes and clients is kept."""

    def __init__(self, folder: str) -> None:
        self.thread = Steps()
        self.folder = folder
        self.to_nodes: deque[tuple[str, m.ToNode]] = deque()
        self.to_clients: deque[tuple[Any, m.FromServer]] = deque()
        self.refused: list[tuple[Any, CortexError]] = []
        self.desk = BlobDesk(
            BlobStore(folder, durable=False),
            self.thread,  # type: ignore[arg-type]
            lambda node, message: self.to_nodes.append((node, message)),
            lambda client, message: self.to_clients.append((client, message)),
            lambda client, error: self.refused.append((client, error)),
        )

    def blobs(self) -> list[str]:
        return sorted(os.listdir(self.folder)) if os.path.isdir(self.folder) else []


class FetchingNode:
    """A node's fetch; `ready` and `failed` are the jobs that came to their end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.thread = Steps()
        self.said: deque[m.FromNode] = deque()
        self.ready: list[str] = []
        self.failed: list[tuple[str, CortexError]] = []
        self.fetch = BundleFetch(
            name,
            self.said.append,
            self.thread,  # type: ignore[arg-type]
            self.ready.append,
            lambda job, error: self.failed.append((job, error)),
        )

    def hear(self, message: m.ToNode) -> None:
        if isinstance(message, m.BlobChunk):
            self.fetch.chunk(message)
        else:
            assert isinstance(message, m.BlobLost)
            self.fetch.lost(message)


def speak(node: FetchingNode, desk: Desk) -> bool:
    """The next word of the node reaches the server's desk."""
    if not node.said:
        return False
    message = node.said.popleft()
    if isinstance(message, m.FetchBlob):
        desk.desk.fetch(message)
    else:
        assert isinstance(message, m.BlobTaken)
        desk.desk.taken(message)
    return True


def listen(desk: Desk, nodes: dict[str, FetchingNode]) -> bool:
    if not desk.to_nodes:
        return False
    name, message = desk.to_nodes.popleft()
    nodes[name].hear(message)
    return True


def settle(desk: Desk, *nodes: FetchingNode) -> None:
    """Until nothing moves any more."""
    named = {node.name: node for node in nodes}
    while desk.thread.step() or listen(desk, named) or any(n.thread.step() or speak(n, desk) for n in nodes):
        pass


def store(desk: Desk, client: Any, packed: Any) -> None:
    """Send a client's files to the desk, as `upload` does over a connection."""
    from cortex.client.bundle_packing import upload

    def send(message: Any) -> None:
        if isinstance(message, m.OfferBlobs):
            desk.desk.offer(client, message)
        else:
            desk.desk.put(client, message)

    def receive(_timeout_s: float) -> Any:
        while not desk.to_clients:
            if desk.refused:
                raise desk.refused[-1][1]
            assert desk.thread.step(), "the server waits for us, and we for it"
        to, message = desk.to_clients.popleft()
        assert to is client
        return message

    upload(packed, send, receive)


def tree(folder: str) -> dict[str, bytes]:
    """Every file below a folder: relative path -> bytes."""
    found = {}
    for above, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(above, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, folder)] = file.read()
    return found
