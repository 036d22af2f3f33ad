"""Maps where the bytes are: nodes with data roots of their own, real processes, real TLS."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import cortex
from cortex.cli.__main__ import main
from cortex.cli.progress import summary
from cortex.errors import DataConflict, InputError, UsageError


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
