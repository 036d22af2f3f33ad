"""The process of ``cortex node``: joins its cluster, then a reactor and a `ClusterNode` until it is to end.

A node that is started before its server waits for it. The template is started before Twisted is imported,
so that both imports overlap. What it spills lies in private folders, which are removed at its end, or by
the next node that spills there.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from cortex.errors import EXIT_DONE, EXIT_INTERRUPTED, CortexError, SpillFull, Unreachable, UsageError
from cortex.formats.data_roots import DataRoots
from cortex.ids import Role
from cortex.limits import NODE_EXIT_S_MAX, REDIAL_FIRST_S, REDIAL_S_MAX, UNIX_PATH_BYTES_MAX
from cortex.memory_plan import MemoryPlan, plan_memory, refuse_beyond_machine
from cortex.private_files import lock_file, make_private_folder
from cortex.private_folders import PrivateFolder, new_name, remove_left_over, runtime_parent
from cortex.storage.filesystem import refuse_memory_backed
from cortex.tasks.template_start import start_template
from cortex.units import counted, format_bytes
from cortex.wire.identity import Identity, load_identity
from cortex.wire.join import Endpoint

_FOLDER = "node"
_LOCK = "node.lock"
_TEMPLATE_EXIT_S_MAX = 1.0


def run_node(
    home: str,
    join_line: str,
    listen: Endpoint,
    advertise: str,
    *,
    memory_bytes: int,
    slots: int,
    spill_dirs: Sequence[str],
    combine: bool = True,
    spill_quota_bytes: int = 0,
    log_file: str = "",
    data_dirs: Sequence[str] = (),
    metrics: Endpoint | None = None,
) -> int:
    """Work until SIGTERM, SIGINT, the end of the cluster or of this node's drain; gives the exit code. A
    second signal ends it on the spot, with EXIT_INTERRUPTED.

    `log_file` "" is standard error.
    0 `memory_bytes` or `slots`: what the machine has; 0 `spill_quota_bytes`: what the disks take. Raises
    UsageError, MemoryTooSmall, JoinRefused, NotTrusted, or what the node failed with later.
    """
    refuse_beyond_machine(memory_bytes)
    plan = plan_memory(memory_bytes, slots)
    roots = DataRoots(data_dirs)
    make_private_folder(home)
    lock = lock_file(os.path.join(home, _LOCK), f"another node lives in {home}")
    folder = os.path.join(home, _FOLDER)
    identity = _identity(folder, join_line)
    template, link = start_template("")
    folders: list[PrivateFolder] = []
    try:
        spills = [_private(parent, folders) for parent in spill_dirs]
        for spill in spills:
            refuse_memory_backed(spill)
        runtime = _private(runtime_parent(UNIX_PATH_BYTES_MAX), folders)
        said = (
            f"cortex node {identity.id} of cluster {identity.cluster}: {counted(plan.slots, 'slot')},"
            f" {format_bytes(plan.cap_bytes)}, spills to {', '.join(spill_dirs)}"
            + (f", data in {', '.join(roots.folders)}" if roots else "")
        )
        print(said, flush=True)
        quota = spill_quota_bytes
        return _serve(
            identity,
            folder,
            listen,
            advertise,
            plan,
            spills,
            quota,
            roots,
            link,
            runtime,
            combine,
            log_file,
            metrics,
        )
    finally:
        for each in folders:
            each.remove()
        link.close()
        template.terminate()  # it kills what is left of the executors
        try:
            template.wait(_TEMPLATE_EXIT_S_MAX)
        except subprocess.TimeoutExpired:
            template.kill()
            template.wait()
        os.close(lock)


def _serve(
    identity: Identity,
    folder: str,
    listen: Endpoint,
    advertise: str,
    plan: MemoryPlan,
    spills: Sequence[str],
    spill_quota_bytes: int,
    roots: DataRoots,
    template: socket.socket,
    runtime: str,
    combine: bool,
    log_file: str,
    metrics: Endpoint | None,
) -> int:
    from twisted.internet import reactor as _reactor

    from cortex.node.cluster_node import ClusterNode
    from cortex.wire.transports import begin_log, use_monotonic_clock

    reactor: Any = _reactor
    use_monotonic_clock(reactor)
    begin_log(log_file)
    failure: list[CortexError] = []
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            reactor.callLater(NODE_EXIT_S_MAX, reactor.stop)  # a stuck disk: the next node removes the rest
            node.stop(reactor.stop)

    def failed(error: CortexError) -> None:
        failure.append(error)
        reactor.callLater(0, stop)

    node = ClusterNode(
        reactor,
        identity,
        folder,
        listen=listen,
        advertise=advertise,
        plan=plan,
        spill_dirs=spills,
        combine=combine,
        spill_quota_bytes=spill_quota_bytes,
        data_roots=roots,
        failed=failed,
        ended=lambda: reactor.callLater(0, stop),
        metrics=metrics,
    )
    if metrics is not None:
        told = Endpoint(metrics.host, node.metrics_port)
        print(f"metrics for clients of the cluster: https://{told}/metrics", flush=True)
    signals = 0

    def asked(*_: Any) -> None:
        nonlocal signals
        signals += 1
        if signals > 1:  # the template kills the executors; the next node removes what was spilled
            os._exit(EXIT_INTERRUPTED)
        reactor.callFromThread(stop)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, asked)
    reactor.callWhenRunning(node.start, template, os.path.join(runtime, "executors.sock"))
    reactor.run(installSignalHandlers=False)
    if failure:
        raise failure[0]
    return EXIT_DONE


def _identity(folder: str, join_line: str) -> Identity:
    """This node's identity: the one it has, or the one it joins for. Waits for a server that is not there."""
    from cortex.wire.joiner import join_cluster
    from cortex.wire.versions import local_versions

    if not join_line:
        kept = load_identity(folder)
        if kept is None:
            raise UsageError(
                "this machine is no node of a cluster yet",
                cure="give --join (or CORTEX_JOIN) the line that the server prints: cortex token create",
            )
        if kept.expired(time.time()):
            raise UsageError(
                f"the certificate of node {kept.id} has expired",
                cure="join again with a new line: cortex token create",
            )
        return kept
    rest_s = 0.0
    while True:
        try:
            return join_cluster(join_line, folder, local_versions(), (Role.NODE,), time.time())
        except Unreachable as error:
            if not rest_s:
                print(f"cortex node: {error.message}; waiting for it", file=sys.stderr, flush=True)
            rest_s = min(REDIAL_S_MAX, max(REDIAL_FIRST_S, 2 * rest_s))
            time.sleep(rest_s)


def _private(parent: str, folders: list[PrivateFolder]) -> str:
    """A new private folder in `parent`, where folders of nodes that were killed are removed."""
    try:
        os.makedirs(parent, mode=0o700, exist_ok=True)
        remove_left_over(parent)
        folder = PrivateFolder(new_name(parent))
    except OSError as error:
        raise SpillFull(
            f"the folder {parent} cannot be used: {error.strerror or error}",
            cure="name a folder of yours with free space: --spill DIR",
        ) from error
    folders.append(folder)
    return folder.path
