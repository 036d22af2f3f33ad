"""A client that is asked without nodes and server between: its real answers, at a socket of this process.

What nodes are told of its files is another path, which nobody has: so that none is read in place.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from cortex.client.client_files import FoundFiles
from cortex.client.input_sender import InputSender
from cortex.job.plan import ClientFiles
from cortex.wire.framing import BlockingConnection
from cortex.wire.messages import InputHello, ReadInput, ToInputDoor

ELSEWHERE = "/a client's own folder"


@dataclass
class Door:
    socket_path: str
    listed: ClientFiles
    reads: list[ReadInput] = field(default_factory=list)
    before_answer: Callable[[ReadInput], None] = lambda read: None


def moved(listed: ClientFiles, folder: str) -> ClientFiles:
    """The same files, as if they lay below `folder`."""
    return tuple(
        tuple(
            msgspec.structs.replace(file, path=os.path.join(folder, file.path.lstrip("/"))) for file in found
        )
        for found in listed
        if found is not None
    )


@contextlib.contextmanager
def client_door(paths: tuple[str, ...], job: str) -> Iterator[Door]:
    """Answers one executor after the other."""
    files = FoundFiles.find(paths)
    listed = moved(files.listed, ELSEWHERE)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        door = Door(os.path.join(folder, "door"), listed)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(door.socket_path)
        listener.listen()
        ending = threading.Event()

        def serve() -> None:
            while True:
                sock, _ = listener.accept()
                if ending.is_set():
                    sock.close()
                    return
                connection = BlockingConnection[ToInputDoor](sock, ToInputDoor)
                with (
                    contextlib.suppress(ConnectionResetError),  # a test cuts the link
                    connection,
                    InputSender(job, files, connection.send) as sender,
                ):
                    assert connection.receive() == InputHello(job)
                    while (read := connection.receive()) is not None:
                        assert isinstance(read, ReadInput)
                        door.reads.append(read)
                        door.before_answer(read)
                        sender.ask(read)

        thread = threading.Thread(target=serve)
        thread.start()

        def end() -> None:
            ending.set()
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as last:
                last.connect(door.socket_path)
            thread.join()
            listener.close()

        stack.callback(end)
        yield door
