"""Settings of the machine: ``CORTEX_*`` variables and a ``.env`` file, read once into a `Config`.

Order: what a command or job says beats the environment, which beats ``.env`` in the current directory,
which beats the defaults. ``.env.example`` in the repository lists every setting. ``.env`` is read by
cortex only: it is never put into the environment, and ``$`` in it is a plain character.

    CORTEX_MEMORY       cap of everything cortex starts (default: half of the machine's or cgroup's)
    CORTEX_SLOTS        executors at once (default: one a processor)
    CORTEX_HOME         folder of cortex's own state
    CORTEX_SPILL_DIRS   folders for temporary data, separated as in PATH (default: spill in the home)
    CORTEX_SPILL_QUOTA  most that a node's temporary data may take (default: all that the disks have free)
    CORTEX_DATA_DIRS    folders whose files a node may read and serve, separated as in PATH (default: none)
    CORTEX_SERVER       HOST:PORT of the cluster's server (default: this machine alone)
    CORTEX_JOIN         the line a node, or a client, joins with: out of sight of process lists
    CORTEX_LISTEN       ADDRESS:PORT that a server or a node listens at (default: 0.0.0.0 and 8786 or 8787)
    CORTEX_ADVERTISE    how other machines reach the server or node here (default: its own address)
    CORTEX_COMBINE      whether a node combines map outputs for other nodes: on or off (default: on)
    CORTEX_METRICS      ADDRESS:PORT where a server or a node tells its figures, over TLS (default: nowhere)
    CORTEX_JOBS_PER_USER, CORTEX_QUEUED_TASKS, CORTEX_USER_WEIGHTS   a server's: see `cortex.sharing_policy`
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from cortex.errors import UsageError
from cortex.job.overrides import parse_slots, utf8_path
from cortex.limits import JOBS_PER_USER, QUEUED_TASKS
from cortex.sharing_policy import SharingPolicy, parse_cap, parse_weights
from cortex.units import parse_bytes

VARIABLES: Final = (
    "CORTEX_MEMORY",
    "CORTEX_SLOTS",
    "CORTEX_HOME",
    "CORTEX_SPILL_DIRS",
    "CORTEX_SPILL_QUOTA",
    "CORTEX_DATA_DIRS",
    "CORTEX_SERVER",
    "CORTEX_JOIN",
    "CORTEX_LISTEN",
    "CORTEX_ADVERTISE",
    "CORTEX_COMBINE",
    "CORTEX_METRICS",
    "CORTEX_JOBS_PER_USER",
    "CORTEX_QUEUED_TASKS",
    "CORTEX_USER_WEIGHTS",
)
DOTENV: Final = ".env"
_OTHER_FOLDER: Final = "rename the folder, or name another one"


@dataclass(frozen=True, slots=True)
class Config:
    """Paths are absolute; no folder is made or checked here."""

    memory_bytes: int
    """0: not set."""
    slots: int
    """0: not set."""
    home: str
    spill_dirs: tuple[str, ...]
    spill_quota_bytes: int = 0
    """0: not set."""
    server: str = ""
    """"" : this machine alone."""
    join_line: str = field(default="", repr=False)
    """It holds a secret."""
    data_dirs: tuple[str, ...] = ()
    """Of a node."""
    listen: str = ""
    advertise: str = ""
    metrics: str = ""
    """Of a server or a node; "": not set."""
    combine: bool = True
    """Of a node."""
    sharing: SharingPolicy = field(default_factory=SharingPolicy)
    """Of a server, among its users."""
    warnings: tuple[str, ...] = ()
    """One line each, for standard error: settings that nothing reads."""


class Setting(NamedTuple):
    """A variable as found. `where` tells the user: ``the environment``, ``.env line 3``."""

    name: str
    value: str
    where: str


def load_config(
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    *,
    memory_bytes: int | None = None,
    slots: int | None = None,
    spill_quota_bytes: int | None = None,
    home: str | None = None,
    server: str | None = None,
    join_line: str | None = None,
    listen: str | None = None,
    advertise: str | None = None,
    metrics: str | None = None,
    jobs_per_user: int | None = None,
    queued_tasks: int | None = None,
    user_weights: Mapping[str, float] | None = None,
) -> Config:
    """The settings; `memory_bytes`, `slots` and those after them are flags, which beat the rest.

    Raises UsageError for a bad value, naming the variable and where it was set.
    """
    folder = os.getcwd() if cwd is None else cwd
    environment = os.environ if env is None else env
    warnings: list[str] = []
    settings: dict[str, Setting] = {}
    for setting in (*_dotenv(folder, warnings), *_environment(environment)):
        if setting.name in VARIABLES:
            settings[setting.name] = setting
        else:
            warnings.append(
                f"{setting.name} ({setting.where}) is no setting of cortex; {_nearest(setting.name)}"
            )
    if home is not None:
        home = _folder(environment, folder, home, "--home")
    else:
        home = _value(settings, "CORTEX_HOME", partial(_folder, environment, folder))
    home = _default_home(environment) if home is None else home
    memory = _value(settings, "CORTEX_MEMORY", parse_bytes) if memory_bytes is None else memory_bytes
    places = _value(settings, "CORTEX_SPILL_DIRS", partial(_folders, environment, folder))
    if spill_quota_bytes is None:
        spill_quota_bytes = _value(settings, "CORTEX_SPILL_QUOTA", parse_bytes)
    count = _value(settings, "CORTEX_SLOTS", parse_slots) if slots is None else slots
    return Config(
        memory_bytes=memory or 0,
        slots=count or 0,
        home=home,
        spill_dirs=places or (_default_spill(home),),
        spill_quota_bytes=spill_quota_bytes or 0,
        server=_value(settings, "CORTEX_SERVER", _text) or "" if server is None else server,
        join_line=_value(settings, "CORTEX_JOIN", _text) or "" if join_line is None else join_line,
        data_dirs=_value(settings, "CORTEX_DATA_DIRS", partial(_folders, environment, folder)) or (),
        listen=_value(settings, "CORTEX_LISTEN", _text) or "" if listen is None else listen,
        advertise=_value(settings, "CORTEX_ADVERTISE", _text) or "" if advertise is None else advertise,
        combine=_value(settings, "CORTEX_COMBINE", _on_or_off) is not False,
        metrics=_value(settings, "CORTEX_METRICS", _text) or "" if metrics is None else metrics,
        sharing=SharingPolicy(
            _value(settings, "CORTEX_USER_WEIGHTS", _weights) or {} if user_weights is None else user_weights,
            jobs_per_user or _value(settings, "CORTEX_JOBS_PER_USER", parse_cap) or JOBS_PER_USER,
            queued_tasks or _value(settings, "CORTEX_QUEUED_TASKS", parse_cap) or QUEUED_TASKS,
        ),
        warnings=tuple(warnings),
    )


def _environment(env: Mapping[str, str]) -> list[Setting]:
    return [Setting(name, env[name], "the environment") for name in sorted(env) if name.startswith("CORTEX_")]


def _dotenv(folder: str, warnings: list[str]) -> list[Setting]:
    path = os.path.join(folder, DOTENV)
    if not os.path.isfile(path):
        return []
    from dotenv.parser import parse_stream  # only where there is a .env: start-up time

    found = []
    try:
        with open(path, encoding="utf-8-sig") as file:
            for binding in parse_stream(file):
                line = binding.original.line
                if binding.error:
                    warnings.append(f"{DOTENV} line {line} is not NAME=value; it is not read")
                elif binding.key is not None and binding.key.startswith("CORTEX_"):
                    found.append(Setting(binding.key, binding.value or "", f"{DOTENV} line {line}"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", cure="correct the file or delete it") from error
    return found


def _value(settings: Mapping[str, Setting], name: str, parse: Callable[[str, str], Any]) -> Any:
    """The parsed value; None if it is not set, or set to nothing."""
    setting = settings.get(name)
    if setting is None or not setting.value.strip():
        return None
    return parse(setting.value, f"{name} ({setting.where})")


def _weights(text: str, what: str) -> dict[str, float]:
    return parse_weights([item for item in text.split(",") if item.strip()], what)


def _text(text: str, what: str) -> str:
    return text.strip()


def _on_or_off(text: str, what: str) -> bool:
    word = text.strip().lower()
    if word not in ("on", "off"):
        raise UsageError(f"{what}: {text!r} is neither on nor off", cure="write on or off")
    return word == "on"


def _folder(env: Mapping[str, str], cwd: str, text: str, what: str) -> str:
    path = text.strip()
    if path == "~" or path.startswith("~/"):
        path = _user_home(env) + path[1:]
    if "\0" in path or path.startswith("~"):
        raise UsageError(f"{what}: {text!r} is not a folder", cure="write an absolute path")
    return utf8_path(os.path.normpath(os.path.join(cwd, path)), f"{what}: the path", _OTHER_FOLDER)


def _folders(env: Mapping[str, str], cwd: str, text: str, what: str) -> tuple[str, ...]:
    parts = [part for part in text.split(os.pathsep) if part.strip()]
    return tuple(dict.fromkeys(_folder(env, cwd, part, what) for part in parts))


def _default_home(env: Mapping[str, str]) -> str:
    if sys.platform == "darwin":
        return os.path.join(_user_home(env), "Library", "Application Support", "cortex")
    state = env.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # the XDG rule: a relative path is ignored
        state = os.path.join(_user_home(env), ".local", "state")
    return os.path.join(state, "cortex")


def _default_spill(home: str) -> str:
    cure = "set CORTEX_HOME to a folder with another name"
    return utf8_path(os.path.join(home, "spill"), "the folder for temporary data", cure)


def _user_home(env: Mapping[str, str]) -> str:
    return env.get("HOME") or os.path.expanduser("~")


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, VARIABLES, 1, 0.6)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(VARIABLES)}"
