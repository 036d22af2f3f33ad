"""docs/security.md says what is so: tests that it names are there, a cluster's files and ports as told."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cortex.clusters import LocalCluster
from cortex.errors import CortexError
from cortex.wire.joiner import join_cluster
from cortex.wire.versions import local_versions

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "security.md").read_text()


def test_every_file_and_test_that_it_names_is_there() -> None:
    paths = set(re.findall(r"`((?:tests|cortex)/[\w/]+\.py)`", DOCUMENT))
    assert len(paths) > 20
    texts = {path: (ROOT / path).read_text() for path in paths}
    named = re.findall(r"`(test_\w+)`", DOCUMENT)
    assert len(named) > 30
    for name in named:
        assert any(f"def {name}(" in text for text in texts.values()), name
    for path in re.findall(r"`(deploy/|pyproject\.toml)`", DOCUMENT):
        assert (ROOT / path).exists()


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=1) as made:
        yield made


def homes(cluster: LocalCluster) -> dict[str, Path]:
    return {"server's": cluster.folder / "server", "node's": cluster.folder / "node1"}


def test_files_and_modes_are_those_of_its_table(cluster: LocalCluster) -> None:
    rows = re.findall(r"^\| `<(\S+) home>/(\S*)` \| .* \| (\d{4})\b.* \|$", DOCUMENT, re.M)
    assert len(rows) >= 7
    for whose, path, mode in rows:
        if whose in homes(cluster):
            found = (homes(cluster)[whose] / path).stat()
            assert f"{stat.S_IMODE(found.st_mode):04o}" == mode, path
    client = cluster.folder / "client"
    line = cluster._join_line
    with pytest.raises(CortexError):  # a node's line: the identity is not kept, the folder is
        join_cluster(line, str(client / "client"), local_versions(), (), 0.0)
    for home in (*homes(cluster).values(), client):
        for path in home.rglob("*"):
            if not path.is_socket():
                assert not path.stat().st_mode & 0o077, path
