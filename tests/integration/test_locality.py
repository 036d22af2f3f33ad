"""Maps where the bytes are: nodes with data roots of their own, real processes, real TLS."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cortex
from cortex.cli.__main__ import main
from cortex.cli.progress import summary
from cortex.clusters import LocalCluster
from cortex.errors import DataConflict, InputError, UsageError
from tests.integration.hidden_cluster import can_hide


class Totals(cortex.MapReduceJob):
    group_by = "name"
    aggregate = {"n": "count()", "total": "sum(value)"}  # noqa: RUF012
    split_size = 100_000
    reducers = 2


def rows(seed: int, count: int, quoted: bool = False) -> str:
    chance = random.Random(seed)
    names = ['"a\n""b"', '"c"', "d"] if quoted else ["a", "b", "c"]
    return "name,value\n" + "".join(
        f"{chance.choice(names)},{chance.randrange(1000)}\n" for _ in range(count)
    )


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name[:5] == "part-"}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of three nodes: each has logs of its own, one file is everywhere."""
    made = []
    for number in range(3):
        root = tmp_path_factory.mktemp(f"root{number}")
        (root / "logs").mkdir()
        (root / "logs" / f"day{number}.csv").write_text(rows(number, 30_000, quoted=True))
        (root / "logs" / f"day{number + 3}.csv").write_text(rows(number + 3, 30_000))
        (root / "all.csv").write_text(rows(7, 5_000))
        (root / "differs.csv").write_text(rows(number, 10))
        made.append(root)
    (made[0] / "out").symlink_to("/etc")
    (made[0] / "one.csv").write_text(rows(8, 1_000))
    return made


@pytest.fixture(scope="module")
def cluster(roots: list[Path]) -> Iterator[cortex.LocalCluster]:
    with cortex.LocalCluster(nodes=3, data=roots) as made:
        yield made


def test_data_names_are_read_where_they_lie(
    roots: list[Path], cluster: cortex.LocalCluster, tmp_path: Path
) -> None:
    together = tmp_path / "in"
    together.mkdir()
    for root in roots:
        for path in (root / "logs").iterdir():
            (together / path.name).write_bytes(path.read_bytes())
    Totals(input=together / "*.csv", output=tmp_path / "here").run()
    done = Totals(input="data:logs/*.csv", output=tmp_path / "there").run(cluster)
    assert parts(tmp_path / "there") == parts(tmp_path / "here")
    found = done.report.locality
    assert found.local_maps > 0
    assert (found.client_maps, found.client_bytes) == (0, 0)
    assert found.local_bytes + found.streamed_bytes >= done.report.bytes_in


def test_a_name_that_is_nowhere_is_said(cluster: cortex.LocalCluster) -> None:
    with pytest.raises(InputError, match="names no file on any node"):
        Totals(input="data:nowhere/*.csv").run(cluster)


def test_one_name_with_two_contents_is_an_error(cluster: cortex.LocalCluster) -> None:
    with pytest.raises(DataConflict) as found:
        Totals(input="data:differs.csv").run(cluster)
    names = [node.node for node in cluster.client.status().nodes]
    assert sum(name in found.value.message for name in names) == 2
    assert found.value.cure


def test_a_link_out_of_a_root_is_refused(cluster: cortex.LocalCluster) -> None:
    with pytest.raises(InputError, match="link out of it"):
        Totals(input="data:out/hostname").run(cluster)
    with pytest.raises(UsageError, match="does not name files below"):
        Totals(input="data:../x").run(cluster)


def test_data_names_need_a_cluster() -> None:
    with pytest.raises(UsageError, match="runs on one machine"):
        Totals(input="data:x.csv").run()


def test_what_lies_on_one_node_alone_is_streamed_to_others(
    roots: list[Path], cluster: cortex.LocalCluster, tmp_path: Path
) -> None:
    class Slow(cortex.MapReduceJob):
        combine = sum
        split_size = 500

        def map(self, row):  # type: ignore[no-untyped-def]
            import time

            time.sleep(0.002)
            yield row["name"], row["value"]

    here = sorted(Slow(input=roots[0] / "one.csv", split_size=1_000_000).run())
    done = Slow(input="data:one.csv").run(cluster)
    assert sorted(done) == here
    assert done.report.locality.client_maps == 0
    assert done.report.locality.streamed_maps > 0
    assert done.report.locality.local_maps > 0


def test_a_cluster_shows_who_holds_what(
    roots: list[Path],
    cluster: cortex.LocalCluster,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CORTEX_HOME", str(cluster.folder / "server"))
    mine = tmp_path / "mine.csv"
    mine.write_text(rows(1, 100))
    arguments = ["ls-splits", "data:logs/*.csv", "data:all.csv", str(mine), "--server", cluster.address]
    assert main([*arguments, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    nodes = {node.node for node in cluster.client.status().nodes}
    holders = {split["file"]: set(split["holders"]) for split in shown["splits"]}
    assert holders.pop(str(mine)) == {"client"}
    assert holders.pop("data:all.csv") == nodes
    assert all(len(each) == 1 for each in holders.values())
    assert set.union(*holders.values()) == nodes
    assert main(arguments) == 0
    assert "holder" in capsys.readouterr().out


def test_shares_are_shown(
    cluster: cortex.LocalCluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = Totals(input="data:all.csv").run(cluster)
    assert any("node-local" in line for line in summary(done))
    monkeypatch.setenv("CORTEX_HOME", str(cluster.folder / "server"))
    assert main(["job", done.report.job, "--server", cluster.address]) == 0
    assert "node-local" in capsys.readouterr().out
    assert main(["jobs", "--server", cluster.address, "--json"]) == 0
    assert sum(job["locality"]["local_maps"] for job in json.loads(capsys.readouterr().out)) > 0


class Covered(LocalCluster):
    """For `node2` another folder lies over `covered`: the same paths are other files there."""

    def __init__(self, covered: Path, by: Path, **rest: Any) -> None:
        self._covered, self._by = covered, by
        super().__init__(**rest)

    def _command(self, name: str) -> list[str]:
        if name != "node2":
            return super()._command(name)
        script = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
        cover = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(self._by)]
        return [*cover, str(self._covered), *super()._command(name)]


@pytest.mark.skipif(not can_hide(), reason="no mount namespaces here (unshare)")
@pytest.mark.parametrize("roots", [True, False], ids=["data roots", "no data roots"])
def test_a_file_that_differs_is_never_read_instead_of_the_clients(tmp_path: Path, roots: bool) -> None:
    mine, theirs, empty = tmp_path / "mine", tmp_path / "theirs", tmp_path / "empty"
    for folder in (mine, theirs, empty):
        folder.mkdir()
    (mine / "in.csv").write_text(rows(1, 20_000))
    (theirs / "in.csv").write_bytes((mine / "in.csv").read_bytes().replace(b"a,1", b"b,7"))
    for folder in (mine, theirs):  # path, size and time are the same
        os.utime(folder / "in.csv", ns=(10**18, 10**18))
    here = sorted(Totals(input=mine / "in.csv").run())
    data = [mine, mine] if roots else []
    with Covered(mine, theirs, nodes=2, data=data) as cluster:
        done = Totals(input=mine / "in.csv", split_size=20_000).run(cluster)
        assert sorted(done) == here
        found = done.report.locality
        if roots:
            assert found.client_bytes == 0  # the other node has the file, and is asked
        else:
            assert found.client_bytes + found.local_bytes >= done.report.bytes_in
            assert found.streamed_bytes == 0


def test_a_bare_path_is_read_at_nodes_that_have_the_same_file(
    roots: list[Path], cluster: cortex.LocalCluster
) -> None:
    here = sorted(Totals(input=roots[0] / "logs" / "day3.csv").run())
    for kind in ("sampled", "full"):
        done = Totals(input=roots[0] / "logs" / "day3.csv", fingerprint=kind).run(cluster)
        assert sorted(done) == here
        assert done.report.locality.client_bytes == 0
        assert done.report.locality.local_maps > 0
