"""Judging what a process said of its machine (`cortex.machine_report`): the same for every machine. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from cortex.client.findings import Finding, ok, problem, warning
from cortex.limits import (
    CERTIFICATE_BACKDATE_S,
    DAY_S,
    MIB,
    OPEN_RUN_FILES_MAX,
    SPILL_RESERVE_BYTES,
)
from cortex.machine_report import FolderReport, MachineReport
from cortex.memory_plan import smallest_cap_bytes
from cortex.units import format_bytes, format_seconds

_DESCRIPTORS_FEW = 4 * OPEN_RUN_FILES_MAX  # a merge, sockets and libraries: what systems commonly give
_DESCRIPTORS_MIN = 2 * OPEN_RUN_FILES_MAX  # below it merges fail
_DISK_FEW_BYTES = 4096 * MIB
_SHARED_FEW_BYTES = 64 * MIB  # what containers give by default, and too little for libraries that use it
_CLOCK_FEW_S = 60.0
_CLOCK_S_MAX = (
    CERTIFICATE_BACKDATE_S / 2
)  # certificates begin an hour early: beyond, new ones do not count yet
_EXPIRY_FEW_S = 7 * DAY_S


def check_machine(report: MachineReport, subject: str, runs_jobs: bool = True) -> Iterator[Finding]:
    """`runs_jobs`: executors run there, or may."""
    yield _descriptors(report, subject)
    if runs_jobs:
        yield _memory(report, subject)
        yield _shared_memory(report, subject)
    for folder in report.folders:
        yield _folder(folder, subject)


def check_clock(ahead_s: float, subject: str, of: str = "the server's") -> Finding:
    """Certificates depend on clocks that agree."""
    said = f"{format_seconds(abs(ahead_s))} {'ahead of' if ahead_s >= 0 else 'behind'} {of}"
    cure = (
        "let the machines keep time, for example with chrony or systemd-timesyncd: timedatectl set-ntp true"
    )
    if abs(ahead_s) > _CLOCK_S_MAX:
        return problem("clock", subject, f"{said}: certificates may not count yet, or no more", cure)
    if abs(ahead_s) > _CLOCK_FEW_S:
        return warning("clock", subject, said, cure)
    return ok("clock", subject, f"within {max(1.0, abs(ahead_s)):.0f} s of {of}")


def check_expiry(expires_at: float, now: float, subject: str, cure: str) -> Finding:
    left_s = expires_at - now
    if left_s <= 0:
        return problem("certificate", subject, f"it expired {format_seconds(-left_s)} ago", cure)
    if left_s < _EXPIRY_FEW_S:
        return warning("certificate", subject, f"it expires in {format_seconds(left_s)}", cure)
    return ok("certificate", subject, f"good for {left_s / DAY_S:.0f} days")


def _descriptors(report: MachineReport, subject: str) -> Finding:
    used = f", {report.descriptors_open} open" if report.descriptors_open >= 0 else ""
    said = f"at most {report.descriptors_max} open files{used}"
    cure = "raise it: ulimit -n 8192, or LimitNOFILE=8192 in the systemd unit"
    if report.descriptors_max < _DESCRIPTORS_MIN:
        return problem("descriptors", subject, said, cure)
    if report.descriptors_max < _DESCRIPTORS_FEW or report.descriptors_open > 0.8 * report.descriptors_max:
        return warning("descriptors", subject, said, cure)
    return ok("descriptors", subject, said)


def _memory(report: MachineReport, subject: str) -> Finding:
    limit_bytes = report.memory_limit_bytes
    usable = min(report.memory_bytes, limit_bytes) if limit_bytes else report.memory_bytes
    said = f"{format_bytes(usable)} of {'its cgroup' if usable == limit_bytes else 'the machine'}"
    if report.memory_cap_bytes:
        said += f", cap {format_bytes(report.memory_cap_bytes)}"
    if usable < smallest_cap_bytes():
        cure = f"cortex needs {format_bytes(smallest_cap_bytes())}: give the container or the machine more"
        return problem("memory", subject, said, cure)
    if report.memory_cap_bytes > usable:
        cure = f"lower --memory (CORTEX_MEMORY) below {format_bytes(usable)}: the kernel kills what is beyond"
        return problem("memory", subject, said, cure)
    return ok("memory", subject, said)


def _shared_memory(report: MachineReport, subject: str) -> Finding:
    cure = (
        "give the container more: docker run --shm-size 1g (cortex itself needs none; libraries in jobs may)"
    )
    if report.shared_memory_bytes < 0:
        return ok("shared memory", subject, "no /dev/shm here")
    said = f"/dev/shm has {format_bytes(report.shared_memory_bytes)}"
    if report.shared_memory_bytes <= _SHARED_FEW_BYTES:
        return warning("shared memory", subject, said, cure)
    return ok("shared memory", subject, said)


def _folder(folder: FolderReport, subject: str) -> Finding:
    check = f"{folder.use} folder"
    if folder.problem:
        return problem(
            check, subject, folder.problem, f"name another one, or: chown it to cortex's user ({folder.path})"
        )
    if folder.memory_backed and folder.use == "spill":
        cure = "name a folder on a disk in CORTEX_SPILL_DIRS (of a node also: --spill)"
        return problem(check, subject, f"{folder.path} lies in memory (tmpfs)", cure)
    if folder.memory_backed:
        cure = "name a home on a disk (CORTEX_HOME): what is in memory is gone with the machine's next start"
        return warning(check, subject, f"{folder.path} lies in memory (tmpfs)", cure)
    said = (
        f"{folder.path}: {format_bytes(max(0, folder.free_bytes))} free of {format_bytes(folder.total_bytes)}"
    )
    cure = "make room, or name a folder on another disk"
    if 0 <= folder.free_bytes < SPILL_RESERVE_BYTES:
        return problem(check, subject, said, cure)
    if 0 <= folder.free_bytes < _DISK_FEW_BYTES and folder.use == "spill":
        return warning(check, subject, said, cure)
    return ok(check, subject, said)
