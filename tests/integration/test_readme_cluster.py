"""The README's two machines, as a person pastes its blocks: on machines made of namespaces word for word, and
on one machine with two homes, where ports and addresses are others.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cortex.cli.app import cortex
from tests.integration.machines import Network, Refused

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SECTION = README.partition("## Two machines in five minutes\n")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"^```(?:sh)?\n(.*?)^```$", SECTION, re.M | re.S)
SERVER, JOIN, RUN, LOGIN = BLOCKS
LINE = "10.0.0.5:8786/TOKEN.CAHASH"


class Terminal:
    """Where a block is pasted: `run` waits for its end, `start` does not, and gives what it has said so far.
    `received` counts the bytes that came to its machine, where they can be told from others."""

    def __init__(
        self,
        run: Callable[[str], str],
        start: Callable[[str], Callable[[], str]],
        received: Callable[[], int] | None = None,
    ) -> None:
        self.run, self.start, self.received = run, start, received


def programs(folder: Path) -> str:
    """What installing makes; gives the PATH."""
    folder.mkdir()
    for name, starts in (("cortex", f"{sys.executable} -P -m cortex"), ("python3", sys.executable)):
        (folder / name).write_text(f'#!/bin/sh\nexec {starts} "$@"\n')
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def machines() -> Iterator[tuple[Terminal, Terminal]]:
    try:
        network = Network(["head", "other"])
    except Refused as why:
        pytest.skip(f"namespaces cannot be made here: {why}")
    with network:
        path = programs(network.shared / "bin")

        def terminal(name: str) -> Terminal:
            machine = network[name]
            (machine.folder / "examples").symlink_to(ROOT / "examples")

            def start(block: str) -> Callable[[], str]:
                called = block.split()[1]
                machine.start("bash", "-euc", f"exec {block}", called=called, PATH=path)
                return lambda: machine.said(called) + machine.log(called)

            def run(block: str) -> str:
                return machine.run("bash", "-euc", f"export PATH='{path}'; {block}").stdout

            return Terminal(run, start, lambda: machine.carried().received)

        yield terminal("head"), terminal("other")


@pytest.fixture
def two_homes(tmp_path: Path) -> Iterator[tuple[Terminal, Terminal]]:
    path = programs(tmp_path / "bin")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CORTEX_", "XDG_"))}
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    processes: list[subprocess.Popen[bytes]] = []

    def here(block: str) -> list[str]:
        block = block.replace("10.0.0.5:8786", f"127.0.0.1:{port}")
        block = re.sub(r"^cortex server$", rf"\g<0> --listen 127.0.0.1:{port}", block, flags=re.M)
        block = re.sub(r"^cortex node .*$", r"\g<0> --listen 127.0.0.1:0", block, flags=re.M)
        return ["bash", "-euc", block]

    def terminal(name: str) -> Terminal:
        folder = tmp_path / name
        (folder / "home").mkdir(parents=True)
        (folder / "examples").symlink_to(ROOT / "examples")
        environment = {**kept, "HOME": str(folder / "home"), "PATH": path, "PYTHONPATH": str(ROOT)}

        def start(block: str) -> Callable[[], str]:
            log = folder / f"log{len(processes)}"
            with open(log, "wb") as file:
                processes.append(
                    subprocess.Popen(here(block), cwd=folder, env=environment, stdout=file, stderr=file)
                )
            return log.read_text

        def run(block: str) -> str:
            done = subprocess.run(
                here(block), cwd=folder, env=environment, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        return Terminal(run, start)

    yield terminal("head"), terminal("other")
    for process in reversed(processes):  # nodes before their server
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize("where", ["machines", "two_homes"])
def test_two_machines_in_five_minutes(where: str, request: pytest.FixtureRequest) -> None:
    head, other = request.getfixturevalue(where)
    server = head.start(SERVER.strip())
    joining = wait(server, r"^  (cortex node --join (\S+/)\S+)$")
    assert JOIN.strip() == f"cortex node --join {LINE}"
    if where == "machines":
        assert joining[2] == LINE.partition("/")[0] + "/"
    for place in (head, other):
        wait(place.start(joining[1]), r"serves others at \S+:\d+$")

    before = other.received() if other.received else 0
    status, *more = head.run(RUN).splitlines()
    assert re.match(r"cluster k\w+: 2 nodes", status)
    assert more[-1] == "the same, byte for byte"
    if other.received:  # its share of the words came from the first machine's maps
        assert other.received() - before > 50_000
    done = head.run("cortex jobs").splitlines()
    assert re.search(r"WordCount\s.*\sdone\s.*plan 1/1, map (\d+)/\1, reduce", done[1])

    create, login = (line.partition("#")[0].strip() for line in LOGIN.splitlines())
    printed = head.run(create).strip()
    assert re.sub(r"\S+$", LINE, printed) == login
    assert "logged in to cluster" in other.run(printed)
    assert status.split()[1] in other.run("cortex status")


def wait(said: Callable[[], str], pattern: str) -> re.Match[str]:
    deadline = time.monotonic() + 30
    while True:
        found = re.search(pattern, said(), re.M)
        if found:
            return found
        assert time.monotonic() < deadline, said()
        time.sleep(0.05)


def test_the_commands_of_the_readme_have_the_options_that_it_names() -> None:
    commands = README.partition("\n## Commands\n\n```\n")[2].partition("\n```\n")[0]
    told = [line for line in re.sub(r"\n +", " ", commands).splitlines() if line]
    assert len(told) >= 15
    for line in told:
        program, *words = line.split()
        assert program == "cortex"
        command = cortex
        for word in words:
            if not hasattr(command, "commands"):
                break
            command = command.commands[word]
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", line)) <= known, line
