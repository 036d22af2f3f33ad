"""What a process can say of the machine it runs on, as plain data: for `cortex doctor`, which judges it."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Sequence

import msgspec

from cortex.process_memory import cgroup_memory_bytes, usable_processors
from cortex.process_metrics import open_descriptors

_SHARED_MEMORY = "/dev/shm"
_LISTENS = "0A"  # the kernel's number of the state


class FolderReport(msgspec.Struct, frozen=True):
    """A folder that cortex writes to. Bytes are -1 where they cannot be asked."""

    use: str
    """home or spill."""
    path: str
    free_bytes: int = -1
    total_bytes: int = -1
    memory_backed: bool = False
    problem: str = ""
    """Why it cannot be used."""


class MachineReport(msgspec.Struct, frozen=True):
    """Times are seconds since 1970."""

    now: float
    versions: dict[str, str]
    processors: int
    memory_bytes: int
    """Of the machine."""
    memory_limit_bytes: int
    """Of this process's cgroups; 0: none."""
    descriptors_max: int
    descriptors_open: int
    """-1: not known."""
    shared_memory_bytes: int
    """Size of /dev/shm; -1: there is none."""
    folders: tuple[FolderReport, ...] = ()
    memory_cap_bytes: int = 0
    """Of a node; 0: none."""
    certificate_expires_at: float = 0.0
    """0: it has none."""
    listeners: tuple[str, ...] = ()
    """``ADDRESS:PORT`` that this process listens on over TCP, where the system says so."""


def examine_machine(
    now: float,
    versions: dict[str, str],
    folders: Sequence[tuple[str, str]],
    is_memory_backed: Callable[[str], bool],
    *,
    memory_cap_bytes: int = 0,
    certificate_expires_at: float = 0.0,
) -> MachineReport:
    """`folders`: (use, path) each. May wait for disks."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = open_descriptors()
    return MachineReport(
        now=now,
        versions=versions,
        processors=usable_processors(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        memory_limit_bytes=cgroup_memory_bytes(),
        descriptors_max=2**31 if soft == resource.RLIM_INFINITY else soft,
        descriptors_open=-1 if opened is None else opened,
        shared_memory_bytes=_bytes_of(_SHARED_MEMORY)[1],
        folders=tuple(_examine_folder(use, path, is_memory_backed) for use, path in folders),
        memory_cap_bytes=memory_cap_bytes,
        certificate_expires_at=certificate_expires_at,
        listeners=own_listeners(),
    )


def _examine_folder(use: str, path: str, is_memory_backed: Callable[[str], bool]) -> FolderReport:
    """One that is missing is made when it is needed: its place is what counts."""
    there = path
    while not os.path.lexists(there) and os.path.dirname(there) != there:
        there = os.path.dirname(there)
    free_bytes, total_bytes = _bytes_of(there)
    problem = ""
    if not os.path.isdir(there):
        problem = f"{there} is not a folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        problem = f"{there} cannot be written"
    try:
        in_memory = is_memory_backed(there)
    except OSError as error:
        in_memory, problem = False, problem or f"{there}: {error.strerror}"
    return FolderReport(use, path, free_bytes, total_bytes, in_memory, problem)


def _bytes_of(path: str) -> tuple[int, int]:
    """(free, all) of the disk under `path`; -1 each where it cannot be asked."""
    try:
        found = os.statvfs(path)
    except OSError:
        return -1, -1
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def own_listeners() -> tuple[str, ...]:
    """Where this process listens over TCP, by the kernel's own tables; nothing on systems without them."""
    sockets = set()
    try:
        for name in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{name}")
            except OSError:  # closed meanwhile
                continue
            if target.startswith("socket:["):
                sockets.add(target[len("socket:[") : -1])
    except OSError:
        return ()
    found = []
    for table in ("tcp", "tcp6"):
        try:
            with open(f"/proc/self/net/{table}", encoding="ascii") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        found += [_address(row[1]) for row in rows if row[3] == _LISTENS and row[9] in sockets]
    return tuple(sorted(found))


def _address(text: str) -> str:
    """The kernel writes addresses as 32-bit words in the machine's own order."""
    import ipaddress

    host, port = text.split(":")
    words = [bytes.fromhex(host[i : i + 8])[::-1] for i in range(0, len(host), 8)]
    address = ipaddress.ip_address(b"".join(words))
    return f"[{address}]:{int(port, 16)}" if address.version == 6 else f"{address}:{int(port, 16)}"
