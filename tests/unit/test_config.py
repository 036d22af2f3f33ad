"""Settings: which place wins, and what is said of a bad one."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from cortex.config import VARIABLES, load_config
from cortex.errors import UsageError
from cortex.wire.join import Endpoint, parse_endpoint, parse_host


def test_defaults(tmp_path: Path) -> None:
    config = load_config({"HOME": "/home/ann"}, str(tmp_path))
    assert (config.memory_bytes, config.slots, config.warnings) == (0, 0, ())
    assert config.home.startswith("/home/ann/")
    assert config.home.endswith("/cortex")
    assert config.spill_dirs == (config.home + "/spill",)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has its own folder for state")
def test_the_state_folder_follows_xdg(tmp_path: Path) -> None:
    assert load_config({"HOME": "/h", "XDG_STATE_HOME": "/state"}, str(tmp_path)).home == "/state/cortex"
    assert (
        load_config({"HOME": "/h", "XDG_STATE_HOME": "rel"}, str(tmp_path)).home == "/h/.local/state/cortex"
    )


def test_flags_beat_environment_beats_dotenv(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "OTHER=1\nCORTEX_MEMORY=1GB\nexport CORTEX_SLOTS='3'\nCORTEX_HOME=here$HOME\n"
    )
    config = load_config({}, str(tmp_path))
    assert (config.memory_bytes, config.slots, config.home) == (2**30, 3, str(tmp_path / "here$HOME"))
    config = load_config({"CORTEX_MEMORY": "2GB", "CORTEX_SLOTS": ""}, str(tmp_path))
    assert (config.memory_bytes, config.slots) == (2**31, 0)
    config = load_config({"CORTEX_MEMORY": "nonsense"}, str(tmp_path), memory_bytes=5, slots=1)
    assert (config.memory_bytes, config.slots) == (5, 1)


def test_folders(tmp_path: Path) -> None:
    env = {"HOME": "/h", "CORTEX_HOME": "~/c", "CORTEX_SPILL_DIRS": "/a:~/b::rel:/a/"}
    config = load_config(env, str(tmp_path))
    assert config.home == "/h/c"
    assert config.spill_dirs == ("/a", "/h/b", str(tmp_path / "rel"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("CORTEX_MEMORY", "lots"), ("CORTEX_SLOTS", "0"), ("CORTEX_SLOTS", "two"), ("CORTEX_HOME", "~ann/x")],
)
def test_a_bad_value_names_the_variable_and_where_it_was_set(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(UsageError, match=rf"{name} \(the environment\)"):
        load_config({name: value}, str(tmp_path))
    (tmp_path / ".env").write_text(f"\n# comment\n{name}={value}\n")
    with pytest.raises(UsageError, match=rf"{name} \(\.env line \d\)"):
        load_config({}, str(tmp_path))


@pytest.mark.parametrize("name", ["CORTEX_HOME", "CORTEX_SPILL_DIRS", "HOME"])
def test_a_folder_whose_name_is_not_utf_8_is_refused(tmp_path: Path, name: str) -> None:
    said = "folder for temporary data" if name == "HOME" else rf"{name} \(the environment\)"
    with pytest.raises(UsageError, match=rf"{said}.* is not UTF-8: b'/caf\\xe9") as caught:
        load_config({name: "/caf\udce9"}, str(tmp_path))
    assert "another" in caught.value.cure
    assert load_config({"HOME": "/caf\udce9", "CORTEX_SPILL_DIRS": "/é"}, str(tmp_path)).spill_dirs == ("/é",)


def test_what_nothing_reads_is_said(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CORTEX_SLOT=3\nthis is not a setting\n")
    config = load_config({"CORTEX_MEMROY": "1GB", "PATH": "/bin"}, str(tmp_path))
    text = "\n".join(config.warnings)
    assert "CORTEX_MEMROY (the environment)" in text
    assert "did you mean CORTEX_MEMORY?" in text
    assert "did you mean CORTEX_SLOTS?" in text
    assert "is not NAME=value" in text
    assert len(config.warnings) == 3


def test_an_unreadable_dotenv(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"CORTEX_SLOTS=\xff\n")
    with pytest.raises(UsageError, match="cannot be read"):
        load_config({}, str(tmp_path))


def test_the_example_lists_every_variable_and_is_right(tmp_path: Path) -> None:
    example = (Path(__file__).parents[2] / ".env.example").read_text()
    assert re.findall(r"^# (CORTEX_\w+)=", example, re.M) == list(VARIABLES)
    (tmp_path / ".env").write_text(re.sub(r"^# (CORTEX_)", r"\1", example, flags=re.M))
    config = load_config({"HOME": "/h"}, str(tmp_path))
    assert config.warnings == ()
    assert config.memory_bytes == 4 * 2**30
    assert parse_endpoint(config.server) == Endpoint("head.example.org", 8786)
    assert config.join_line == "HOST:PORT/TOKEN.CAHASH"
    assert parse_endpoint(config.listen) == Endpoint("10.0.0.5", 8786)
    assert parse_host(config.advertise, "it") == "head.example.org"
    assert parse_endpoint(config.metrics) == Endpoint("10.0.0.5", 9786)
