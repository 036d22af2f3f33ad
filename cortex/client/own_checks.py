"""This machine, as `cortex doctor` looks at it: settings, permissions, packages, memory, disks, identity."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Mapping

from cortex.client.findings import Finding, failed, ok, problem, warning
from cortex.client.report_checks import check_expiry, check_machine
from cortex.config import DOTENV, Config
from cortex.errors import CortexError, MemoryTooSmall
from cortex.limits import UNIX_PATH_BYTES_MAX
from cortex.machine_report import examine_machine
from cortex.memory_plan import plan_memory
from cortex.private_files import check_private_file, check_private_folder
from cortex.private_folders import new_name, runtime_parent
from cortex.storage.filesystem import is_memory_backed
from cortex.units import format_bytes
from cortex.wire.identity import FILE_NAME, load_identity

HERE = "this machine"
_SECRETS = ("CORTEX_JOIN",)
_PRIVATE_FOLDERS = ("authority", "server", "admin", "tokens", "journal", "audit", "node", "client")
_PRIVATE_FILES = (
    os.path.join("authority", "authority.pem"),
    os.path.join("tokens", "tokens.sqlite"),
    os.path.join("journal", "journal.sqlite"),
    os.path.join("audit", "audit.jsonl"),
    *(os.path.join(name, FILE_NAME) for name in ("server", "admin", "node", "client")),
)
_LOGIN = "cortex login HOST:PORT/TOKEN.CAHASH, with a line from: cortex token create --role client"
_RENEWED = {
    "server": "start the server: it renews its own",
    "admin": "start the server: it renews the admin's",
    "node": "start the node while its server runs: it renews its own; once expired: cortex node --join LINE",
    "client": _LOGIN,
}


def check_machine_here(
    config: Config, folder: str, now: float, versions: Mapping[str, str]
) -> Iterator[Finding]:
    """`folder`: the current one, where a `.env` may be. `versions` are of this process."""
    yield ok("python", HERE, f"Python {versions['python']}, {sys.executable}")
    yield _packages(versions)
    yield _settings(config, folder)
    yield _plan(config)
    folders = [("home", config.home), *(("spill", each) for each in config.spill_dirs)]
    yield from check_machine(examine_machine(now, dict(versions), folders, is_memory_backed), HERE)
    yield _sockets()
    yield from _permissions(config.home)
    yield from _identities(config.home, now)


def _packages(versions: Mapping[str, str]) -> Finding:
    said = ", ".join(f"{name} {versions[name]}" for name in ("cortex", "pyarrow", "cloudpickle"))
    missing = []
    for name in ("pyarrow", "numpy", "cloudpickle", "msgspec", "xxhash", "twisted", "cryptography"):
        try:
            __import__(name)
        except Exception as error:  # a library that is broken fails in many ways
            missing.append(f"{name} ({type(error).__name__}: {error})")
    if missing:
        cure = "install them again: pip install --force-reinstall cortex-mapreduce"
        return problem("packages", HERE, f"cannot be imported: {'; '.join(missing)}", cure)
    return ok("packages", HERE, said)


def _settings(config: Config, folder: str) -> Finding:
    path = os.path.join(folder, DOTENV)
    try:
        found = os.stat(path)
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            text = file.read()
    except OSError:
        found, text = None, ""
    if found is not None and stat.S_IMODE(found.st_mode) & 0o077:
        mode = f"{path} has mode {stat.S_IMODE(found.st_mode):04o}"
        if any(line.lstrip().removeprefix("export ").startswith(_SECRETS) for line in text.splitlines()):
            said = f"{mode}, and holds a join line: others can read its secret"
            return problem("settings", HERE, said, f"chmod 600 {path}; cortex token revoke TOKEN")
        if stat.S_IMODE(found.st_mode) & 0o022:
            return warning("settings", HERE, f"{mode}: others can change it", f"chmod 600 {path}")
    if config.warnings:
        return warning("settings", HERE, "; ".join(config.warnings), "correct the name, or remove it")
    return ok("settings", HERE, f"home {config.home}" + (f", {path}" if found is not None else ""))


def _plan(config: Config) -> Finding:
    try:
        plan = plan_memory(config.memory_bytes, config.slots)
    except MemoryTooSmall as error:
        return failed("memory plan", HERE, error)
    said = f"{plan.slots} slots of {format_bytes(plan.executor_bytes)} under {format_bytes(plan.cap_bytes)}"
    if config.slots > plan.slots:
        cure = "raise CORTEX_MEMORY, or lower CORTEX_SLOTS"
        return warning("memory plan", HERE, f"{said}: CORTEX_SLOTS asks for {config.slots}", cure)
    return ok("memory plan", HERE, said)


def _sockets() -> Finding:
    try:
        parent = runtime_parent(UNIX_PATH_BYTES_MAX)
    except CortexError as error:
        return failed("unix sockets", HERE, error)
    path = os.path.join(new_name(parent), "executors.sock")
    if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
        said = f"names such as {path} are too long for sockets"
        return problem("unix sockets", HERE, said, "set XDG_RUNTIME_DIR or TMPDIR to a short path")
    return ok("unix sockets", HERE, f"in {parent}")


def _permissions(home: str) -> Iterator[Finding]:
    """Of what is there; one line when all is well."""
    if not os.path.lexists(home):
        yield ok("permissions", HERE, f"{home} is made when it is needed")
        return
    wrong = False
    for path in (home, *(os.path.join(home, name) for name in _PRIVATE_FOLDERS)):
        if os.path.lexists(path):
            try:
                check_private_folder(path)
            except CortexError as error:
                wrong = True
                yield failed("permissions", HERE, error)
    for path in (os.path.join(home, name) for name in _PRIVATE_FILES):
        try:
            check_private_file(os.lstat(path), path)
        except OSError:  # none, or in a folder that was told of
            continue
        except CortexError as error:
            wrong = True
            yield failed("permissions", HERE, error)
    if not wrong:
        yield ok("permissions", HERE, f"nobody else can read {home}")


def _identities(home: str, now: float) -> Iterator[Finding]:
    for name, cure in _RENEWED.items():
        try:
            identity = load_identity(os.path.join(home, name))
        except CortexError as error:
            yield failed("certificate", f"{HERE}'s {name}", error)
            continue
        if identity is None:
            continue
        subject = f"{HERE}'s {name} {identity.id}"
        if now < identity.issued_at:
            cure_clock = "set this machine's clock: timedatectl set-ntp true"
            yield problem(
                "certificate", subject, "it does not count yet: the clock here is behind", cure_clock
            )
        else:
            yield check_expiry(identity.expires_at, now, subject, cure)
