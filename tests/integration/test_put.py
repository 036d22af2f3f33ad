"""``cortex put``: files spread over nodes' data roots, with real processes and real TLS."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import random
import resource
import time
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cortex
from cortex.cli.__main__ import main
from cortex.client import put_session
from cortex.client.cluster_client import ClusterConnection
from cortex.client.put_session import put_file
from cortex.errors import CortexError, DataIncomplete, InputChanged, PartDamaged, Unreachable
from cortex.job.spec import InputSpec
from cortex.wire import messages as m


class Totals(cortex.MapReduceJob):
    group_by = "name"
    aggregate = {"n": "count()", "total": "sum(value)"}  # noqa: RUF012
    reducers = 2
    split_size = 60_000  # or small parts would share a map


def rows(seed: int, count: int) -> str:
    chance = random.Random(seed)
    names = ['"a\n""b"', '"c, d"', "e", '"name,value\n"']
    return "name,value\r\n" + "".join(
        f"{chance.choice(names)},{chance.randrange(1000)}\r\n" for _ in range(count)
    )


def output(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name[:5] == "part-"}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [tmp_path_factory.mktemp(f"root{number}") for number in range(3)]


@pytest.fixture(scope="module")
def cluster(roots: list[Path]) -> Iterator[cortex.LocalCluster]:
    with cortex.LocalCluster(nodes=3, data=roots) as made:
        yield made


@pytest.fixture
def put(cluster: cortex.LocalCluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    monkeypatch.setenv("CORTEX_HOME", str(cluster.folder / "server"))

    def run(*arguments: object) -> tuple[int, dict, str]:  # type: ignore[type-arg]
        code = main(["put", *map(str, arguments), "--server", cluster.address, "--json"])
        said = capfd.readouterr()
        return code, json.loads(said.out), said.err

    return run


def settled(roots: list[Path]) -> None:
    """Wait until nodes have removed what they had of puts under way."""
    deadline = time.monotonic() + 60
    while hidden := [path for root in roots for path in root.iterdir() if path.name.startswith(".")]:
        assert time.monotonic() < deadline, hidden
        time.sleep(0.02)


def below(roots: list[Path]) -> dict[str, bytes]:
    settled(roots)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for root in roots
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "_SHA256SUMS"
    }


def test_a_csv_file_is_put_and_read_where_it_lies(put, roots, cluster, tmp_path, capfd) -> None:  # type: ignore[no-untyped-def]
    text = rows(1, 40_000)
    (tmp_path / "big.csv").write_text(text, newline="")
    code, report, _ = put(tmp_path / "big.csv", "--part-size", "50KB")
    assert code == 0
    assert report["name"] == "data:big/*"
    assert len(report["nodes"]) == 3
    parts = {name: data for name, data in below(roots).items() if name.startswith("big/")}
    assert len(parts) == report["parts"] > 8
    assert sum(node["parts"] for node in report["nodes"]) == report["parts"]
    shares = [node["size_bytes"] for node in report["nodes"]]
    assert sum(shares) == report["size_bytes"] == sum(map(len, parts.values()))
    assert max(shares) - min(shares) <= 2 * 50_000
    head = b"name,value\r\n"
    assert all(part.startswith(head) and len(part) <= 50_000 for part in parts.values())
    assert head + b"".join(parts[name].removeprefix(head) for name in sorted(parts)) == text.encode()

    for root in roots:
        for line in (root / "big" / "_SHA256SUMS").read_text().splitlines():
            sha256, name = line.split("  ")
            assert hashlib.sha256((root / "big" / name).read_bytes()).hexdigest() == sha256

    Totals(input=tmp_path / "big.csv", output=tmp_path / "here").run()
    done = Totals(input="data:big/*", output=tmp_path / "there").run(cluster)
    assert output(tmp_path / "there") == output(tmp_path / "here")
    found = done.report.locality
    assert found.local_maps > 0
    assert found.client_maps == 0

    assert main(["ls-splits", "data:big/*", "--server", cluster.address, "--json"]) == 0
    splits = json.loads(capfd.readouterr().out)["splits"]
    assert {holder for split in splits for holder in split["holders"]} == {
        node["node"] for node in report["nodes"]
    }


def test_a_parquet_file_is_put_by_row_groups(put, roots, cluster, tmp_path) -> None:  # type: ignore[no-untyped-def]
    chance = random.Random(2)
    table = pa.table(
        {
            "name": pa.array([chance.choice("abc") for _ in range(20_000)]).dictionary_encode(),
            "value": [chance.randrange(1000) for _ in range(20_000)],
            "when": pa.array(range(20_000), pa.timestamp("us", "UTC")),
        }
    )
    pq.write_table(table, tmp_path / "events.parquet", row_group_size=1000, compression="zstd")
    code, report, _ = put(tmp_path / "events.parquet", "--as", "events-1", "--part-size", "30KB")
    assert code == 0
    assert report["parts"] > 3
    names = sorted(name for name in below(roots) if name.startswith("events-1/"))
    found = [next(root / name for root in roots if (root / name).exists()) for name in names]
    assert pa.concat_tables(map(pq.read_table, found)).equals(table)
    assert pq.ParquetFile(found[0]).metadata.row_group(0).column(0).compression == "ZSTD"
    Totals(input=tmp_path / "events.parquet", output=tmp_path / "here").run()
    Totals(input="data:events-1/*.parquet", output=tmp_path / "there").run(cluster)
    assert output(tmp_path / "there") == output(tmp_path / "here")


def test_a_name_that_is_there_is_refused_or_replaced(put, roots, cluster, tmp_path, capfd) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "twice.csv").write_text(rows(3, 3000))
    assert put(tmp_path / "twice.csv", "--part-size", "5KB")[0] == 0
    before = below(roots)
    (tmp_path / "twice.csv").write_text(rows(4, 500))
    code, error, _ = put(tmp_path / "twice.csv", "--part-size", "5KB")
    assert (code, error["error"]["code"]) == (2, "output-exists")
    assert below(roots) == before
    code, report, _ = put(tmp_path / "twice.csv", "--part-size", "5KB", "--overwrite")
    assert code == 0
    after = {name: data for name, data in below(roots).items() if name.startswith("twice/")}
    assert len(after) == report["parts"] < sum(name.startswith("twice/") for name in before)

    assert main(["put", str(tmp_path / "twice.csv"), "--overwrite", "--server", cluster.address]) == 0
    said = capfd.readouterr().out.splitlines()
    assert said[0].startswith("data:twice/*: 1 part, ")
    assert [line.split(":")[1] for line in said[1:]] == [f" 1 part, {said[0].rpartition(', ')[2]}"]

    (roots[0] / "mine").mkdir()
    (roots[0] / "mine" / "notes.txt").write_text("not put")
    code, error, _ = put(tmp_path / "twice.csv", "--as", "mine", "--overwrite")
    assert (code, error["error"]["code"]) == (2, "output-exists")
    assert (roots[0] / "mine" / "notes.txt").read_text() == "not put"


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "..", "", "/etc", "x*"])
def test_names_that_are_no_plain_folder_are_refused(put, roots, tmp_path, name) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "some.csv").write_text(rows(5, 10))
    before = below(roots)
    code, error, _ = put(tmp_path / "some.csv", "--as", name)
    assert (code, error["error"]["code"]) == (2, "usage")
    assert below(roots) == before


def test_gzip_is_put_decompressed_and_text_as_it_is(put, roots, tmp_path) -> None:  # type: ignore[no-untyped-def]
    text = "".join(f"{number} {'x' * (number % 50)}\n" for number in range(5000)) + "no newline"
    (tmp_path / "log.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert put(tmp_path / "log.txt.gz", "--part-size", "20KB", "--copies", "2")[0] == 0
    parts = {name: data for name, data in below(roots).items() if name.startswith("log/")}
    assert all(name.endswith(".txt") for name in parts)
    assert b"".join(parts[name] for name in sorted(parts)).decode() == text
    copies = [sum((root / name).exists() for root in roots) for name in parts]
    assert copies == [2] * len(parts)


def test_a_name_that_leads_out_is_refused_by_the_server_as_well(put, roots, cluster) -> None:  # type: ignore[no-untyped-def]
    before = below(roots)
    for name in ("../out", "a/b", ".."):
        with (
            ClusterConnection(cluster.config.home, cluster.config.server) as connection,
            pytest.raises(CortexError, match=r"\$.name"),
        ):
            connection.ask(m.BeginPut(name, ".csv"), m.PutBegun)
    assert below(roots) == before
    assert not [path for root in roots for path in root.parent.glob("out*")]


def _put(cluster: cortex.LocalCluster, path: Path, name: str, on_progress=lambda parts, size: None, **rest):  # type: ignore[no-untyped-def]
    with ClusterConnection(cluster.config.home, cluster.config.server) as connection:
        spec = InputSpec((str(path),))
        return put_file(connection, str(path), spec, name, 20_000, on_progress=on_progress, **rest)


def test_an_interrupted_put_leaves_nothing(roots, cluster, tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "in.csv").write_text(rows(6, 20_000))
    before = below(roots)

    def interrupt(parts: int, size_bytes: int) -> None:
        if parts == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _put(cluster, tmp_path / "in.csv", "interrupted", interrupt)
    assert below(roots) == before
    assert _put(cluster, tmp_path / "in.csv", "interrupted").parts > 3


def test_a_file_that_changes_is_not_put(roots, cluster, tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "in.csv"
    path.write_text(rows(7, 20_000))
    before = below(roots)

    def change(parts: int, size_bytes: int) -> None:
        if parts == 2:
            with path.open("a") as file:
                file.write("x,1\n")

    with pytest.raises(InputChanged):
        _put(cluster, path, "changed", change)
    assert below(roots) == before


def test_a_part_that_arrives_damaged_is_read_again(roots, cluster, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "in.csv"
    path.write_text(rows(8, 10_000))
    real, done = put_session._PartReads.read, set()

    def damage(reads, number, offset, length, always=False):  # type: ignore[no-untyped-def]
        data = real(reads, number, offset, length)
        if number in (1, 3) and (always or number not in done):
            done.add(number)
            return data[:100] + bytes([data[100] ^ 1]) + data[101:]
        return data

    monkeypatch.setattr(put_session._PartReads, "read", damage)
    report = _put(cluster, path, "damaged")
    assert done == {1, 3}
    parts = {name: data for name, data in below(roots).items() if name.startswith("damaged/")}
    assert len(parts) == report.parts
    head = b"name,value\r\n"
    got = head + b"".join(parts[name].removeprefix(head) for name in sorted(parts))
    assert got == path.read_bytes()

    before = below(roots)
    monkeypatch.setattr(put_session._PartReads, "read", partialmethod(damage, always=True))
    with pytest.raises(PartDamaged):
        _put(cluster, path, "damaged-again")
    assert below(roots) == before


def test_a_disk_that_fails_gets_no_parts(roots, cluster, tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "in.csv"
    path.write_text(rows(9, 20_000))
    before = resource.prlimit(cluster.nodes["node1"].pid, resource.RLIMIT_FSIZE)
    resource.prlimit(cluster.nodes["node1"].pid, resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        report = _put(cluster, path, "full")
    finally:
        resource.prlimit(cluster.nodes["node1"].pid, resource.RLIMIT_FSIZE, before)
    assert len(report.nodes) == 2
    names = {name for name in below(roots) if name.startswith("full/")}
    assert len(names) == report.parts
    assert not (roots[0] / "full").exists()


def test_a_node_or_the_server_is_killed_meanwhile(tmp_path, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "in.csv"
    path.write_text(rows(10, 30_000))
    roots = [tmp_path_factory.mktemp(f"kill{number}") for number in range(3)]
    with cortex.LocalCluster(nodes=3, data=roots) as cluster:

        def kill(parts: int, size_bytes: int) -> None:
            if parts == 7 and cluster.nodes["node2"].poll() is None:
                cluster.nodes["node2"].kill()
                cluster.nodes["node2"].wait()

        report = _put(cluster, path, "killed", kill)
        assert len(report.nodes) == 2
        assert not (roots[1] / "killed").exists()
        there = {name for name in below([roots[0], roots[2]]) if name.startswith("killed/")}
        assert len(there) == report.parts
        Totals(input=path, output=tmp_path / "here").run()
        Totals(input="data:killed/*", output=tmp_path / "there").run(cluster)
        assert output(tmp_path / "there") == output(tmp_path / "here")

        cluster.start_node("node2")
        settled(roots)  # what it had of the put, it removes when it starts

        def kill_server(parts: int, size_bytes: int) -> None:
            if parts == 2 and cluster.server.poll() is None:
                cluster.server.kill()
                cluster.server.wait()

        with pytest.raises(Unreachable):
            _put(cluster, path, "orphan", kill_server)
        before = below(roots)
        assert not [name for name in before if name.startswith("orphan")]
        cluster.start_server()
        deadline = time.monotonic() + 60
        nodes = 0
        while nodes < 3:
            assert time.monotonic() < deadline
            with contextlib.suppress(Unreachable):
                nodes = len(cluster.client.status().nodes)
        assert _put(cluster, path, "orphan").parts == report.parts
        cluster.nodes["node1"].kill()
        cluster.nodes["node1"].wait()
        deadline = time.monotonic() + 60
        said = ""
        while "on no node that is here" not in said:  # until the server has counted it as lost
            assert time.monotonic() < deadline, said
            with pytest.raises(DataIncomplete) as found:
                Totals(input="data:killed/*").run(cluster)
            said = found.value.message
