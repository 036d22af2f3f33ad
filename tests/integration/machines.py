"""Machines for tests, made of Linux namespaces: each has its own network, mounts and processes.

    with Network(["head", "node1"]) as network:
        network["head"].run("cortex", "status")

They hang on one bridge by a cable each (a veth pair), with addresses 10.0.0.5, 10.0.0.6 and so on. A machine
has a folder of its own, and sees nothing in those of the others; what lies in `network.shared` all see and
none may write. The folders are on this machine's disk, at the same paths inside.

Nothing outlives its network: each namespace is held by one process that reads a pipe from here, and ends
with it, however the tests end; with its first process the kernel kills all others of a process namespace,
and takes the network's devices down with the network namespace.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
_TOOLS = ("unshare", "nsenter", "ip", "mount")
_SPACES = ("--net", "--mount", "--pid")
_AS_ROOT = ("--user", "--preserve-credentials")
# As the first process of a machine. What belongs to others is covered, so that it cannot be seen.
_FIRST = """
mount --make-rprivate /
for folder in $HIDDEN; do mount -t tmpfs -o ro,mode=0,size=4k none "$folder"; done
if [ -n "$SHARED" ]; then mount --bind "$SHARED" "$SHARED"; mount -o remount,bind,ro "$SHARED"; fi
ip link set lo up
echo ready
exec cat
"""


class Carried(NamedTuple):
    """Bytes that a machine's cable has carried: those it sent, and those that came to it."""

    sent: int
    received: int


class Refused(Exception):
    """Namespaces cannot be made here."""


class Space:
    """The namespaces of one machine, and the process that holds them."""

    def __init__(self, within: Space | None, hidden: Iterable[Path] = (), shared: Path | None = None) -> None:
        """`within` None: the first, whose owner owns the others; one who is not root is root inside."""
        root = os.geteuid() == 0
        before = [] if root or within is None else [*within.enter[:3], *_AS_ROOT]
        user = [] if root or within is not None else ["--user", "--map-root-user"]
        unshare = ["unshare", *user, *_SPACES, "--fork", "--kill-child", "--mount-proc"]
        self._holder = subprocess.Popen(
            [*before, *unshare, "sh", "-euc", _FIRST],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"HIDDEN": " ".join(map(str, hidden)), "SHARED": str(shared or "")},
        )
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        if self._holder.stdout.readline() != "ready\n":
            self._holder.wait()
            raise Refused(self._holder.stderr.read().strip())
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text()
        self.pid = int(children)
        """Of its first process, as it is known outside."""
        self.enter = ["nsenter", "--target", str(self.pid), *([] if root else _AS_ROOT), *_SPACES]
        """What a command begins with that is to run inside."""

    def close(self) -> None:
        assert self._holder.stdin is not None
        self._holder.stdin.close()
        self._holder.wait(60)
        for stream in (self._holder.stdout, self._holder.stderr):
            assert stream is not None
            stream.close()


class Machine:
    """One machine. `folder` is its own, `address` where others reach it."""

    def __init__(self, name: str, number: int, network: Network) -> None:
        self.name = name
        self.folder = network.folder / name
        self.address = f"10.0.0.{number}"
        others = [network.folder / other for other in network.names if other != name]
        self.space = Space(network.hub, others, network.shared)
        self._network = network
        self._processes: list[subprocess.Popen[bytes]] = []
        cable = self.cable = f"to-{name}"
        network.ip(f"link add {cable} type veth peer name eth0 netns {self.space.pid}")
        network.ip(f"link set {cable} master hub up")
        address = f"addr add {self.address}/24 dev eth0"
        for words in (address, "link set eth0 up", "route add default dev eth0"):
            _do([*self.space.enter, "ip", *words.split()])

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command here to its end."""
        done = subprocess.run(
            self._there(command),
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0 or not check, f"{self.name}: {command}: {done.stderr}"
        return done

    def start(self, *command: str, called: str = "main", **environment: str) -> subprocess.Popen[bytes]:
        """Start a command here, which ends with the network. What it writes can be had by its name."""
        with (
            open(self.folder / f"{called}.out", "wb") as out,
            open(self.folder / f"{called}.log", "ab") as log,
        ):
            process = subprocess.Popen(
                self._there(command),
                env=self._environment() | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
            )
        self._processes.append(process)
        return process

    def said(self, called: str = "main") -> str:
        """What a started command has written on its standard output."""
        return (self.folder / f"{called}.out").read_text()

    def log(self, called: str = "main") -> str:
        """... and on its standard error; that of earlier ones of this name comes first."""
        return (self.folder / f"{called}.log").read_text()

    def plug(self, into: bool) -> None:
        """Pull its cable out of the hub, or put it back: no packet says that it is gone."""
        self._network.ip(f"link set {self.cable} {'up' if into else 'down'}")

    def carried(self) -> Carried:
        (link,) = json.loads(self._network.ip(f"-s -j link show dev {self.cable}"))
        stats = link["stats64"]
        return Carried(stats["rx"]["bytes"], stats["tx"]["bytes"])  # as the hub sees them

    def close(self) -> None:
        self.space.close()
        for process in self._processes:
            process.wait(60)

    def _there(self, command: tuple[str, ...]) -> list[str]:
        program, *rest = command
        words = [sys.executable, "-P", "-m", "cortex"] if program == "cortex" else [program]
        return [*self.space.enter, "sh", "-c", 'cd "$0" && exec "$@"', str(self.folder), *words, *rest]

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CORTEX_", "XDG_"))}
        path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
        own = {"HOME": str(self.folder / "home"), "TMPDIR": str(self.folder / "tmp")}
        return {**kept, **own, "PYTHONPATH": path}


class Network:
    """See the module. Raises Refused where namespaces cannot be made."""

    def __init__(self, names: list[str]) -> None:
        missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
        if not sys.platform.startswith("linux") or missing:
            raise Refused(f"namespaces need Linux and the commands {', '.join(_TOOLS)}")
        self.names = names
        self.folder = Path(tempfile.mkdtemp(prefix="cortex-net-"))
        self.shared = self.folder / "shared"
        self.machines: dict[str, Machine] = {}
        self.hub: Space | None = None
        try:
            for folder in (self.shared, *(self.folder / name for name in names)):
                folder.mkdir(mode=0o755)
                for own in () if folder == self.shared else ("home", "tmp"):
                    (folder / own).mkdir(mode=0o700)
            self.hub = Space(None)
            self.ip("link add hub type bridge")
            self.ip("link set hub up")
            for number, name in enumerate(names, 5):
                self.machines[name] = Machine(name, number, self)
        except BaseException:
            self.close()
            raise

    def ip(self, words: str) -> str:
        """Run ``ip`` where the hub is. Process ids in it are those outside."""
        assert self.hub is not None
        there = [word for word in self.hub.enter if word not in ("--mount", "--pid")]
        return _do([*there, "ip", *words.split()])

    def __getitem__(self, name: str) -> Machine:
        return self.machines[name]

    def close(self) -> None:
        with contextlib.ExitStack() as all_of_it:
            all_of_it.callback(shutil.rmtree, self.folder)
            if self.hub is not None:
                all_of_it.callback(self.hub.close)
            for machine in self.machines.values():
                all_of_it.callback(machine.close)

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _do(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise Refused(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
