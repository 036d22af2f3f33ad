"""The systemd units: systemd's own verifier has nothing to say, and what they name is there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cortex.cli import members
from cortex.config import VARIABLES

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = ["cortex-server.service", "cortex-node.service"]
PROGRAM = "/opt/cortex/bin/cortex"
VERIFIER = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(VERIFIER is None, reason="systemd-analyze is not installed here")


def settings(unit: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (DEPLOY / unit).read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def verify(tmp_path: Path, unit: str, text: str) -> tuple[int, str]:
    program = tmp_path / "cortex"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / unit).write_text(text.replace(PROGRAM, str(program)))
    command = [VERIFIER or "", "verify", "--man=no", str(tmp_path / unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_systemd_takes_the_unit_without_a_word(tmp_path: Path, unit: str) -> None:
    text = (DEPLOY / unit).read_text()
    assert text.count(PROGRAM) == 1
    said = verify(tmp_path, unit, text)
    if "Failed to" in said[1] and unit not in said[1]:
        pytest.skip(f"systemd-analyze cannot verify here: {said[1]}")
    assert said == (0, "")
    _, complaint = verify(tmp_path, unit, text.replace("RestrictRealtime", "RestrictRealtme"))
    assert "RestrictRealtme" in complaint  # it does look


@needs_systemd
@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_keeps_little_open(tmp_path: Path, unit: str) -> None:
    command = [VERIFIER or "", "security", "--offline=yes", "--threshold=25", str(DEPLOY / unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip(f"this systemd-analyze is too old: {done.stderr.strip()}")  # offline since 250
    assert done.returncode == 0, done.stdout + done.stderr  # an exposure of 2.5 of 10 at most


@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_starts_the_command_with_options_that_it_has(unit: str) -> None:
    found = settings(unit)
    program, name, *rest = shlex.split(*found["ExecStart"])
    command: click.Command = getattr(members, name)
    assert unit == f"cortex-{name}.service"
    assert (program, rest.pop()) == (PROGRAM, "$OPTIONS")
    command.make_context(name, rest)  # raises for an option that there is not
    shown = re.findall(r"OPTIONS=(--\S.*)$", (DEPLOY / unit).read_text(), re.M)
    assert shown
    for options in shown:
        command.make_context(name, shlex.split(options))
    with pytest.raises(click.UsageError):
        command.make_context(name, ["--nonsense"])


@pytest.mark.parametrize("path", [*UNITS, "README.md"])
def test_settings_that_are_named_are_settings(path: str) -> None:
    named = set(re.findall(r"\bCORTEX_\w+", (DEPLOY / path).read_text()))
    assert named
    assert named <= set(VARIABLES)


@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_is_for_a_user_of_its_own_whose_state_is_its_home(unit: str) -> None:
    found, name = settings(unit), unit.removesuffix(".service")
    assert found["User"] == found["StateDirectory"] == [name]
    assert found["StateDirectoryMode"] == ["0700"]
    assert f"CORTEX_HOME=%S/{name}" in found["Environment"]
    readme = (DEPLOY / "README.md").read_text()
    assert f"--home-dir /var/lib/{name} {name}\n" in readme
    assert f"cp {unit} /etc/systemd/system/" in readme
    assert found["EnvironmentFile"][0].removeprefix("-") in readme
    assert found["Restart"] == ["on-failure"]


def test_the_commands_of_the_readme_are_commands() -> None:
    """Those of cortex itself: the rest is the system's."""
    told = re.findall(
        r"(?:/opt/cortex/bin/|`)cortex ([a-z-]+(?: create)?)", (DEPLOY / "README.md").read_text()
    )
    assert set(told) == {"token create", "status", "drain", "kill-cluster"}
    for words in told:
        done = subprocess.run(
            [sys.executable, "-m", "cortex", *words.split(), "--help"], capture_output=True, timeout=60
        )
        assert done.returncode == 0
