"""Running one job on this machine, from spec to `Result`: what `MapReduceJob.run` and the commands share.

The order of a job's end is: every part staged and fsynced by the executors, committed here in one rename,
then acknowledged, so that server and nodes forget the job. On any failure, and on Ctrl-C, staging is removed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from cortex import __version__
from cortex.client.bundle_packing import NOTHING_PACKED, PackedBundle, pack
from cortex.client.client import LocalSession
from cortex.config import Config, load_config
from cortex.errors import OutputFailed
from cortex.ids import new_job_id
from cortex.imports_of_job import modules_beside, needed_packages
from cortex.job.spec import JobSpec, Resources
from cortex.job.travelling import module_name
from cortex.private_folders import LOCK, PrivateFolder, new_name, remove_left_over
from cortex.result import Result
from cortex.storage.filesystem import LocalFilesystem, refuse_memory_backed
from cortex.user_code import executor_sys_path, pickle_code
from cortex.wire.messages import JobDone, JobProgress

if TYPE_CHECKING:
    from cortex.api import MapReduceJob
    from cortex.client.cluster_session import ClusterSession
    from cortex.storage.output_committer import StagedOutput

OnProgress = Callable[[JobProgress], None]


def open_session(resources: Resources, config: Config | None = None) -> LocalSession | ClusterSession:
    """Start the processes of this machine; they get ready while the caller goes on. With a server
    configured: a session of its cluster.

    What the job says comes before `CORTEX_*` variables and ``.env``. Raises OutputFailed or UsageError for a
    spill folder that cannot be used, or that lies in memory.
    """
    config = config or load_config()
    try:
        if spill_folder(config).startswith(config.home + os.sep):
            os.makedirs(config.home, mode=0o700, exist_ok=True)  # makedirs gives only the last one its mode
        os.makedirs(spill_folder(config), mode=0o700, exist_ok=True)
        refuse_memory_backed(spill_folder(config))
    except OSError as error:
        raise _no_spill_folder(spill_folder(config), error) from error
    if config.server:
        from cortex.client.cluster_session import ClusterSession

        return ClusterSession(config.home, config.server)
    return LocalSession(
        memory_bytes=resources.memory_bytes or config.memory_bytes,
        slots=resources.slots or config.slots,
        spill_dir=spill_folder(config),
    )


def run_class_job(job: MapReduceJob, config: Config | None, on_progress: OnProgress | None) -> Result:
    from cortex.class_spec import build_spec

    spec = build_spec(job)
    config = config or load_config()
    with open_session(spec.resources, config) as session:
        packed = pack_job(session, job, spec)
        session.wait_ready()  # from here on its processes know of, and remove, what a killed one leaves
        return run_job(session, spec, packed, on_progress, spill_folder(config))


def needs_code(spec: JobSpec) -> bool:
    """False for a declared job: its expressions and aggregates are text in the spec."""
    return spec.map_form != "declared" or spec.reduce_form not in ("none", "aggregate")


@dataclass(frozen=True)
class PackedJob:
    """A job's code, as executors unpickle it, and what travels beside it."""

    code: bytes = b""
    bundle: PackedBundle = NOTHING_PACKED
    sys_path: tuple[str, ...] = ()


def pack_job(
    session: LocalSession | ClusterSession, job: object, spec: JobSpec, module_names: tuple[str, ...] = ()
) -> PackedJob:
    """`module_names` are modules of the job besides its class's own.

    Where the session's nodes see other folders than this process, modules beside the job's own that its
    code imports travel as well, and the packages that it imports are noted, for each node to look for.
    """
    if not needs_code(spec):
        return PackedJob()
    pickled = pickle_code(job, module_names, map(module_name, spec.modules))
    if session.shares_files:
        return PackedJob(pickled.code, pack(spec.files, spec.modules), executor_sys_path())
    travelling = modules_beside(pickled.imports, pickled.roots, spec.modules)
    packages = needed_packages(travelling.imports)
    return PackedJob(pickled.code, pack(spec.files, spec.modules, travelling.sources).needing(packages))


def run_job(
    session: LocalSession | ClusterSession,
    spec: JobSpec,
    packed: PackedJob,
    on_progress: OnProgress | None,
    result_home: str,
) -> Result:
    """Run, commit and acknowledge. Without an output path the result's parts lie under `result_home`."""
    if spec.output.at == "nodes":
        if not session.shares_files:
            return _run_on_nodes(session, spec, packed, on_progress)
        spec = msgspec.structs.replace(spec, output=msgspec.structs.replace(spec.output, at="client"))
    if spec.output.path:
        return _run_to_output(session, spec, packed, on_progress)
    spec = msgspec.structs.replace(spec, output=msgspec.structs.replace(spec.output, format="arrow"))

    def fetch(folder: str) -> JobDone:
        return session.run(spec, packed.code, packed.sys_path, folder, on_progress, packed.bundle)

    return temporary_result(spec, result_home, fetch, session.received)


def temporary_result(
    spec: JobSpec,
    result_home: str,
    fetch: Callable[[str], JobDone],
    received: Callable[[str], None] = lambda job: None,
) -> Result:
    """`fetch` brings the parts into a new folder under `result_home`, which the result owns; then
    `received(job)`."""
    folder = _temporary_folder(result_home)
    try:
        done = fetch(folder.path)
        try:
            _keep_only(folder.path, done)
        finally:
            received(done.job)
    except BaseException:
        folder.remove()
        raise
    return Result(spec, done.report, done.parts, folder.path, folder.remove)


def _run_to_output(
    session: LocalSession | ClusterSession,
    spec: JobSpec,
    packed: PackedJob,
    on_progress: OnProgress | None,
) -> Result:
    from cortex.storage.output_committer import abort_output, stage_output

    fs = LocalFilesystem()
    staged = stage_output(fs, spec.output.path, new_job_id(), spec.output.overwrite)
    try:
        done = session.run(spec, packed.code, packed.sys_path, staged.path, on_progress, packed.bundle)
        try:
            commit_parts(fs, staged, spec, done)
        finally:
            session.received(done.job)
    except BaseException:
        abort_output(fs, staged)
        raise
    return Result(spec, done.report, done.parts, spec.output.path)


def _run_on_nodes(
    session: LocalSession | ClusterSession,
    spec: JobSpec,
    packed: PackedJob,
    on_progress: OnProgress | None,
) -> Result:
    """Nodes write and commit the output, at a path that this machine need not see."""
    done = session.run(spec, packed.code, packed.sys_path, "", on_progress, packed.bundle)
    session.received(done.job)
    return Result(spec, done.report, done.parts, spec.output.path)


def commit_parts(fs: LocalFilesystem, staged: StagedOutput, spec: JobSpec, done: JobDone) -> None:
    """The parts are in the staging folder: they are the output, in one step."""
    from cortex.storage.output_committer import commit_output

    manifest = {"job": spec.name, "format": spec.output.format, "cortex": __version__}
    commit_output(fs, staged, done.parts, manifest)


# --- temporary results ------------------------------------------------------------------------------


def spill_folder(config: Config) -> str:
    """The folder for everything temporary: run files, and results without an output path."""
    return config.spill_dirs[0]


def _temporary_folder(home: str) -> PrivateFolder:
    try:
        remove_left_over(home)  # results of processes that were killed before they could
        return PrivateFolder(new_name(home))
    except OSError as error:
        raise _no_spill_folder(home, error) from error


def _no_spill_folder(folder: str, error: OSError) -> OutputFailed:
    return OutputFailed(
        f"the folder for temporary files, {folder}, cannot be used: {error.strerror or error}",
        cure="set CORTEX_SPILL_DIRS to a folder of yours with free space",
    )


def _keep_only(folder: str, done: JobDone) -> None:
    """Remove what attempts that lost left in the folder."""
    wanted = {LOCK, *(part.staged_as for part in done.parts)}
    for name in set(os.listdir(folder)) - wanted:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))
