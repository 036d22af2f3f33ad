"""Who may exchange pickles and Arrow data with whom."""

from __future__ import annotations

import importlib.metadata
import platform

import pytest

import cortex
from cortex.errors import VersionMismatch
from cortex.wire.versions import check_versions, local_versions

OURS = {
    "protocol": "1",
    "cortex": "0.1.0",
    "python": "3.11.7",
    "cloudpickle": "3.1.2",
    "pyarrow": "21.0.0",
}


def test_the_versions_of_this_process_are_those_of_its_packages() -> None:
    found = local_versions()
    assert found["python"] == platform.python_version()
    assert found["cortex"] == cortex.__version__
    for package in ("cloudpickle", "pyarrow"):
        assert found[package] == importlib.metadata.version(package)
    check_versions(found, found, "itself")


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("cortex", "0.1.9"), ("python", "3.11.14"), ("cloudpickle", "3.1.0"), ("pyarrow", "21.3.1")],
)
def test_what_breaks_no_pickle_is_taken(name: str, theirs: str) -> None:
    check_versions({**OURS, name: theirs}, OURS, "node n1")


@pytest.mark.parametrize(
    ("name", "theirs", "cure"),
    [
        ("protocol", "2", "install the same version of cortex"),
        ("cortex", "0.2.0", "for node n1: pip install 'cortex-mapreduce==0.1.0'"),
        ("python", "3.12.7", "run node n1 with Python 3.11"),
        ("python", "3.1", "run node n1 with Python 3.11"),
        ("cloudpickle", "3.2.0", "for node n1: pip install 'cloudpickle==3.1.2'"),
        ("pyarrow", "20.0.0", "for node n1: pip install 'pyarrow==21.0.0'"),
    ],
)
def test_what_would_break_pickles_is_refused_with_the_cure(name: str, theirs: str, cure: str) -> None:
    with pytest.raises(VersionMismatch) as raised:
        check_versions({**OURS, name: theirs}, OURS, "node n1")
    assert f"node n1 has other versions: {name} {theirs} there, {OURS[name]} here" == raised.value.message
    assert cure in raised.value.cure


def test_everything_that_differs_is_named_at_once() -> None:
    with pytest.raises(VersionMismatch) as raised:
        check_versions({"protocol": "1", "python": "3.13.0"}, OURS, "the client")
    assert "python 3.13.0 there, 3.11.7 here" in raised.value.message
    assert "pyarrow unknown there" in raised.value.message
    assert raised.value.cure == (
        "run the client with Python 3.11, and for the client: pip install 'cortex-mapreduce==0.1.0'"
        " 'cloudpickle==3.1.2' 'pyarrow==21.0.0'"
    )
