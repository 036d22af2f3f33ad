"""`cortex doctor` without sockets: each thing is broken on purpose, and its line is there with the cure."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cortex.client.cluster_checks import _node, _ports, _server
from cortex.client.findings import Finding, Verdict, is_well
from cortex.client.own_checks import check_machine_here
from cortex.client.report_checks import check_clock, check_expiry, check_machine
from cortex.config import load_config
from cortex.ids import Role, new_peer_id
from cortex.limits import CLIENT_CERTIFICATE_S, DAY_S, MIB
from cortex.machine_report import FolderReport, MachineReport, examine_machine, own_listeners
from cortex.storage.filesystem import is_memory_backed
from cortex.wire import messages as m
from cortex.wire.authority import Authority, make_key
from cortex.wire.identity import make_identity, save_identity
from cortex.wire.versions import local_versions


def folder(use: str, free_mb: int, memory_backed: bool = False) -> FolderReport:
    return FolderReport(use, f"/{use}", free_mb * MIB, 9999 * MIB, memory_backed)


NOW = time.time()
VERSIONS = local_versions()
REPORT = MachineReport(
    now=NOW,
    versions=VERSIONS,
    processors=2,
    memory_bytes=4096 * MIB,
    memory_limit_bytes=0,
    descriptors_max=8192,
    descriptors_open=20,
    shared_memory_bytes=2048 * MIB,
    folders=(folder("home", 9000), folder("spill", 9000)),
    certificate_expires_at=NOW + 20 * DAY_S,
)


def said(findings: Iterable[Finding], check: str) -> Finding:
    """The worst of this check."""
    order = [Verdict.OK, Verdict.WARNING, Verdict.PROBLEM]
    return max((each for each in findings if each.check == check), key=lambda each: order.index(each.verdict))


def changed(**values: Any) -> MachineReport:
    return msgspec.structs.replace(REPORT, **values)


def test_a_machine_where_all_is_well() -> None:
    findings = list(check_machine(REPORT, "here"))
    assert {each.verdict for each in findings} == {Verdict.OK}
    assert not any(each.cure for each in findings)
    assert is_well(findings)


@pytest.mark.parametrize(
    ("check", "values", "verdict", "cure"),
    [
        ("descriptors", {"descriptors_max": 256}, Verdict.PROBLEM, "LimitNOFILE"),
        ("descriptors", {"descriptors_max": 1000}, Verdict.WARNING, "ulimit -n"),
        ("descriptors", {"descriptors_open": 8000}, Verdict.WARNING, "ulimit -n"),
        ("memory", {"memory_limit_bytes": 100 * MIB}, Verdict.PROBLEM, "cortex needs"),
        ("memory", {"memory_cap_bytes": 8192 * MIB}, Verdict.PROBLEM, "--memory"),
        ("shared memory", {"shared_memory_bytes": 64 * MIB}, Verdict.WARNING, "--shm-size"),
        ("spill folder", {"folders": (folder("spill", 100),)}, Verdict.PROBLEM, "make room"),
        ("spill folder", {"folders": (folder("spill", 900),)}, Verdict.WARNING, "make room"),
        ("home folder", {"folders": (folder("home", 100),)}, Verdict.PROBLEM, "make room"),
        ("home folder", {"folders": (folder("home", 9000, True),)}, Verdict.WARNING, "CORTEX_HOME"),
    ],
)  # fmt: skip
def test_a_machine_where_something_is_wrong(
    check: str, values: dict[str, Any], verdict: Verdict, cure: str
) -> None:
    found = said(check_machine(changed(**values), "here"), check)
    assert found.verdict is verdict
    assert cure in found.cure


def test_a_spill_folder_in_memory_and_one_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folders = [("spill", str(tmp_path / "file" / "below"))]
    if is_memory_backed("/dev/shm"):
        folders.append(("spill", "/dev/shm/to be made"))
    report = examine_machine(NOW, VERSIONS, folders, is_memory_backed)
    findings = [each for each in check_machine(report, "here") if each.check == "spill folder"]
    assert all(each.verdict is Verdict.PROBLEM for each in findings)
    assert "is not a folder" in findings[0].said
    if len(findings) > 1:
        assert "lies in memory (tmpfs)" in findings[1].said
        assert "CORTEX_SPILL_DIRS" in findings[1].cure


@contextlib.contextmanager
def not_as_root() -> Iterator[None]:
    """Root may write everywhere: be nobody for a moment."""
    if os.geteuid():
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with not_as_root():
        report = examine_machine(NOW, VERSIONS, [("spill", str(tmp_path / "closed"))], is_memory_backed)
    assert "cannot be written" in said(check_machine(report, "here"), "spill folder").said


def test_clocks() -> None:
    assert check_clock(0.3, "node n1").verdict is Verdict.OK
    assert check_clock(-100.0, "node n1").verdict is Verdict.WARNING
    behind = check_clock(-4000.0, "node n1")
    assert (behind.verdict, "behind the server's" in behind.said, "chrony" in behind.cure) == (
        Verdict.PROBLEM,
        True,
        True,
    )


def test_certificates_that_expire() -> None:
    assert check_expiry(NOW + 30 * DAY_S, NOW, "x", "renew it").verdict is Verdict.OK
    assert check_expiry(NOW + 2 * DAY_S, NOW, "x", "renew it").verdict is Verdict.WARNING
    assert check_expiry(NOW - 5, NOW, "x", "renew it") == Finding(
        "certificate", "x", Verdict.PROBLEM, "it expired 5.00 s ago", "renew it"
    )


# --- this machine ---


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., list[Finding]]:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)

    def look(now: float = NOW, **env: str) -> list[Finding]:
        config = load_config({"CORTEX_HOME": str(home), **env}, str(tmp_path))
        return list(check_machine_here(config, str(tmp_path), now, VERSIONS))

    return look


def identity_in(folder: Path, issued_at: float) -> None:
    authority = Authority.make("k" + "0" * 12, issued_at)
    key = make_key()
    certificate = authority.issue(key.public_key(), Role.CLIENT, new_peer_id(Role.CLIENT), issued_at)
    save_identity(str(folder), make_identity(key, certificate, authority.certificate, "h:1"))


def test_this_machine_is_well(look: Callable[..., list[Finding]], tmp_path: Path) -> None:
    identity_in(tmp_path / "home" / "client", NOW)
    findings = look()
    assert is_well(findings)
    checks = [each.check for each in findings]
    assert checks[:4] == ["python", "packages", "settings", "memory plan"]
    assert set(checks) >= {"unix sockets", "permissions", "certificate", "spill folder", "home folder"}


def test_permissions_of_home_and_identity(look: Callable[..., list[Finding]], tmp_path: Path) -> None:
    identity_in(tmp_path / "home" / "client", NOW)
    (tmp_path / "home").chmod(0o755)
    found = said(look(), "permissions")
    assert (found.verdict, found.cure) == (Verdict.PROBLEM, f"chmod 700 {tmp_path / 'home'}")
    (tmp_path / "home").chmod(0o700)
    (tmp_path / "home" / "client" / "identity.pem").chmod(0o644)
    found = said(look(), "permissions")
    assert found.verdict is Verdict.PROBLEM
    assert f"chmod 600 {tmp_path / 'home' / 'client' / 'identity.pem'}" in found.cure
    assert said(look(), "certificate").verdict is Verdict.PROBLEM  # it is not used


def test_a_dotenv_that_others_can_read(look: Callable[..., list[Finding]], tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("CORTEX_MEMORY=1GB\n")
    dotenv.chmod(0o644)
    assert said(look(), "settings").verdict is Verdict.OK  # nothing secret in it
    dotenv.write_text("export CORTEX_JOIN=head:8786/t0-0.0\n")
    found = said(look(), "settings")
    assert (found.verdict, "chmod 600" in found.cure) == (Verdict.PROBLEM, True)
    assert "t0-0" not in found.said
    dotenv.chmod(0o600)
    assert said(look(), "settings").verdict is Verdict.OK
    dotenv.write_text("CORTEX_MEMORY=1GB\n")
    dotenv.chmod(0o666)
    assert said(look(), "settings").verdict is Verdict.WARNING


def test_a_setting_that_nothing_reads(look: Callable[..., list[Finding]]) -> None:
    found = said(look(CORTEX_MEMROY="1GB"), "settings")
    assert (found.verdict, "CORTEX_MEMORY" in found.said) == (Verdict.WARNING, True)


def test_too_little_memory_or_too_many_slots(look: Callable[..., list[Finding]]) -> None:
    found = said(look(CORTEX_MEMORY="50MB"), "memory plan")
    assert (found.verdict, "smallest that works" in found.cure) == (Verdict.PROBLEM, True)
    assert said(look(CORTEX_MEMORY="400MB", CORTEX_SLOTS="50"), "memory plan").verdict is Verdict.WARNING


def test_a_package_that_is_missing(
    look: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xxhash", None)
    found = said(look(), "packages")
    assert found.verdict is Verdict.PROBLEM
    assert "xxhash (ModuleNotFoundError" in found.said
    assert "pip install" in found.cure


def test_certificates_here(look: Callable[..., list[Finding]], tmp_path: Path) -> None:
    identity_in(tmp_path / "home" / "client", NOW)
    expired = said(look(NOW + CLIENT_CERTIFICATE_S + 60), "certificate")
    assert (expired.verdict, "cortex login" in expired.cure) == (Verdict.PROBLEM, True)
    early = said(look(NOW - 7200), "certificate")
    assert (early.verdict, "the clock here is behind" in early.said) == (Verdict.PROBLEM, True)
    assert said(look(NOW + CLIENT_CERTIFICATE_S - DAY_S), "certificate").verdict is Verdict.WARNING


def test_no_place_for_sockets(look: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortex.client.own_checks.runtime_parent", lambda most: "/" + "x" * most)
    found = said(look(), "unix sockets")
    assert (found.verdict, "XDG_RUNTIME_DIR" in found.cure) == (Verdict.PROBLEM, True)


# --- a cluster's answers ---


def diagnosis(*nodes: m.NodeDiagnosis, **server: Any) -> m.Diagnosis:
    return m.Diagnosis(NOW, changed(**server), nodes, (8786, 0))


def test_a_node_with_other_versions_is_told_what_to_install() -> None:
    report = changed(versions={**VERSIONS, "pyarrow": "1.0.0", "python": "3.9.1"})
    node = m.NodeDiagnosis("n1", "h:1", report)
    found = said(_node(node, diagnosis(node)), "versions")
    assert found.verdict is Verdict.PROBLEM
    assert "pyarrow 1.0.0 there" in found.said
    assert "pip install" in found.cure
    assert "Python" in found.cure


def test_a_port_that_one_node_cannot_reach_is_told_of_its_owner() -> None:
    closed = (m.PortClosed("n2", "h2:8787", "Connection was refused"),)
    nodes = (
        m.NodeDiagnosis("n1", "h1:8787", REPORT, closed=closed),
        m.NodeDiagnosis("n2", "h2:8787", REPORT),
    )
    first, second = _ports(diagnosis(*nodes))
    assert (first.subject, first.verdict) == ("node n1", Verdict.OK)
    assert (second.subject, second.verdict) == ("node n2", Verdict.PROBLEM)
    assert second.said == "no connection to h2:8787 from n1: Connection was refused"


def test_a_server_with_a_listener_of_its_own_or_too_few_descriptors() -> None:
    found = said(_server(diagnosis(listeners=("0.0.0.0:8786", "0.0.0.0:4444"))), "listeners")
    assert (found.verdict, "0.0.0.0:4444" in found.said) == (Verdict.PROBLEM, True)
    assert said(_server(diagnosis(listeners=("0.0.0.0:8786",))), "listeners").verdict is Verdict.OK
    nodes = [m.NodeDiagnosis(f"n{i}", "", REPORT) for i in range(1000)]
    found = said(_server(diagnosis(*nodes, descriptors_max=1024)), "descriptors")
    assert (found.verdict, "2256" in found.cure) == (Verdict.WARNING, True)


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="the kernel's tables are Linux's")
def test_a_process_knows_where_it_listens() -> None:
    import socket

    before = set(own_listeners())
    with (
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
    ):
        found = set(own_listeners()) - before
        assert found == {f"127.0.0.1:{four.getsockname()[1]}", f"[::1]:{six.getsockname()[1]}"}
    assert set(own_listeners()) == before
