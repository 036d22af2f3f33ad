"""Functions and the sources that travel with them, as an executor loads them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest

from cortex.errors import ProtocolError, UserCodeError
from cortex.tasks.travelling_function import TravellingFunction, load_function


@pytest.fixture(autouse=True)
def _imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("travels_for_tests", None)


def _code(function: object, modules: dict[str, bytes] | None = None) -> bytes:
    return TravellingFunction(cloudpickle.dumps(function), modules or {}).encode()


def test_a_function_alone(tmp_path: Path) -> None:
    assert load_function(_code(lambda x: x + 1), "f", str(tmp_path))(1) == 2
    assert list(tmp_path.iterdir()) == []


def test_sources_are_laid_out_once(tmp_path: Path) -> None:
    def uses() -> int:
        import travels_for_tests

        return int(travels_for_tests.VALUE)

    code = _code(uses, {"travels_for_tests.py": b"VALUE = 5"})
    assert load_function(code, "f", str(tmp_path))() == 5
    (folder,) = tmp_path.iterdir()
    made = (folder / "travels_for_tests.py").stat().st_mtime_ns
    sys.path.remove(str(folder))  # as in another executor of the node
    assert load_function(code, "f", str(tmp_path))() == 5
    assert (folder / "travels_for_tests.py").stat().st_mtime_ns == made
    other = _code(uses, {"travels_for_tests.py": b"VALUE = 6"})
    assert load_function(other, "f", str(tmp_path))() == 6
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("path", ["../outside.py", "a/../../outside.py", "/tmp/outside_of_it.py"])
def test_no_source_leaves_its_folder(tmp_path: Path, path: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(ProtocolError, match="leads out"):
        load_function(_code(len, {path: b""}), "f", str(inside))
    assert [each.name for each in tmp_path.iterdir()] == ["inside"]


def test_what_is_no_function(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="is no function"):
        load_function(b"garbage", "f", str(tmp_path))
    with pytest.raises(UserCodeError, match="f is a int, which cannot be called"):
        load_function(_code(5), "f", str(tmp_path))
    broken = TravellingFunction(b"\x80\x05garbage").encode()
    with pytest.raises(UserCodeError, match="the function f cannot be loaded"):
        load_function(broken, "f", str(tmp_path))
