"""The house's own promises: floors, types and style. Each is a tool's check of the whole tree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from cortex.cli.app import cortex as group
from cortex.config import VARIABLES

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        ["lint-imports", "--no-cache"],
        ["mypy", "cortex"],
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
    ],
    ids=lambda command: " ".join(command),
)
def test_check(command: list[str]) -> None:
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_process_collects_the_same_tests() -> None:
    """Those of pytest-xdist have to: whenever they do, and however they hash."""
    said = []
    for seed in ("1", "2"):
        later = f"import sys, time, pytest; time.time = lambda: {seed}e9; sys.exit(pytest.main(sys.argv[1:]))"
        command = [sys.executable, "-c", later, "--collect-only", "-q", "-o", "addopts=", "tests"]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        said.append([line for line in done.stdout.splitlines() if "::" in line])
    assert said[0] == said[1]
    assert len(said[0]) > 1000


def test_the_dependencies_are_those_of_the_design() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {d.split(">")[0].split("[")[0] for d in project["dependencies"]}
    assert names == {
        "twisted",
        "cryptography",
        "cloudpickle",
        "pyarrow",
        "numpy",
        "pyyaml",
        "python-dotenv",
        "xxhash",
        "msgspec",
        "click",
        "rich",
    }
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert not [name for name in names if f"`{name}`" not in text and f"`{name}[tls]`" not in text]


def test_nothing_listens_but_behind_tls_or_in_a_private_folder() -> None:
    """`wire/peers.listen_tls` and `wire/transports.listen_unix` alone open a door; no switch changes that."""
    opens = re.compile(
        r"\.listen(TCP|SSL|UNIX|UDP|With)\(|\.adoptStreamPort\(|\.listen\(\)|create_server\(|serverFrom"
    )
    found = {
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in (ROOT / "cortex").rglob("*.py")
        for match in opens.finditer(path.read_text())
    }
    assert found == {"cortex/wire/peers.py: .listenTCP(", "cortex/wire/transports.py: .listenUNIX("}
    doubtful = re.compile(r"insecure|no.?tls|plain.?text|no.?verify|skip.?check|anonymous|trust.?all", re.I)
    words = [*VARIABLES, *(opt for each in commands(group) for param in each.params for opt in param.opts)]
    assert [word for word in words if doubtful.search(word)] == []


def commands(of: click.Group) -> list[click.Command]:
    found = list(of.commands.values())
    return found + [each for one in found if isinstance(one, click.Group) for each in commands(one)]
