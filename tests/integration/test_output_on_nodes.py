"""Output that the nodes write to a path they share, and one of them commits: real processes, some killed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import cortex
from cortex.errors import CortexError, OutputExistsError, OutputUnseen, UsageError, UserCodeError
from tests.integration.held_job import Folder, names, parts, restart, tasks_done, wait_for, where
from tests.integration.hidden_cluster import HiddenCluster, can_hide


@pytest.fixture
def files(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "files")


@pytest.fixture(scope="module")
def cluster() -> Iterator[cortex.LocalCluster]:
    with cortex.LocalCluster(nodes=2) as found:
        yield found


def shared(files: Folder) -> Path:
    folder = files.path / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def on_nodes(files: Folder, name: str = "Words", **options: object) -> cortex.MapReduceJob:
    return files.job(name, output=os.fspath(shared(files) / "out"), output_on="nodes", **options)


def test_the_output_is_that_of_one_machine_and_committed_in_one_step(
    cluster: cortex.LocalCluster, files: Folder
) -> None:
    wanted = files.alone()
    out = shared(files) / "out"
    said = files.command(
        "mapreduce", "words.py:Words", "--output", str(out), "--output-on", "nodes", *where(cluster)
    )
    assert said.returncode == 0, said.stderr
    assert "commit" in said.stderr
    assert parts(out) == wanted
    assert names(out) == {"_SUCCESS", "_manifest.json", *wanted}
    manifest = json.loads((out / "_manifest.json").read_text())
    assert [file["name"] for file in manifest["files"]] == sorted(wanted)
    assert names(shared(files)) == {"out"}
    mode = out.stat().st_mode & 0o777
    assert mode == (files.path / "alone").stat().st_mode & 0o777
    with pytest.raises(OutputExistsError, match="exists already"):
        on_nodes(files).run(cluster.client)
    with pytest.raises(OutputExistsError, match="exists already"):
        on_nodes(files).run(cluster.client, detach=True)
    assert parts(out) == wanted
    result = on_nodes(files, reducers=2, overwrite=True).run(cluster.client)
    assert names(out) == {"_SUCCESS", "_manifest.json", "part-00000.csv", "part-00001.csv"}
    assert dict(result)["c"] == 600
    assert names(shared(files)) == {"out"}


def test_a_map_only_job_and_one_with_a_job_file(cluster: cortex.LocalCluster, files: Folder) -> None:
    (files.path / "copy.yaml").write_text(
        "input: {path: in.txt, format: csv, header: false, columns: {line: string}}\n"
        "output: {path: shared/out, on: nodes, format: jsonl}\n"
        "map: {select: {line: line}}\n"
        "resources: {split_size: 2KB}\n"
    )
    shared(files)
    ran = files.command("mapreduce", "copy.yaml", "--quiet", *where(cluster))
    assert ran.returncode == 0, ran.stderr
    alone = files.command("mapreduce", "copy.yaml", "-o", "alone", "--quiet", "--server", "local")
    assert alone.returncode == 0, alone.stderr
    assert parts(shared(files) / "out") == parts(files.path / "alone")


def test_a_detached_job_is_committed_without_its_client(cluster: cortex.LocalCluster, files: Folder) -> None:
    wanted = files.alone()
    handle = on_nodes(files).run(cluster.client, detach=True)
    handle.wait()
    assert parts(shared(files) / "out") == wanted
    assert handle.status().kept_until == 0
    with pytest.raises(UsageError, match="write it to"):
        handle.fetch(files.path / "here")
    with pytest.raises(UsageError, match="needs a folder"):
        files.job(output_on="nodes").run(cluster.client, detach=True)


def test_a_job_that_fails_or_is_cancelled_leaves_nothing_there(
    cluster: cortex.LocalCluster, files: Folder
) -> None:
    files.open("map")
    with pytest.raises(UserCodeError):
        on_nodes(files, "Wrong").run(cluster.client)
    wait_for(lambda: not names(shared(files)), "a failed job has left its output")
    handle = on_nodes(files).run(cluster.client, detach=True)
    wait_for(lambda: tasks_done(handle, "map"))
    assert names(shared(files)) == {f".out.{handle.id}.shared"}
    handle.cancel()
    with pytest.raises(CortexError, match="cancelled"):
        handle.wait()
    wait_for(lambda: not names(shared(files)), "a cancelled job has left its output")


@pytest.mark.skipif(not can_hide(), reason="no mount namespaces here")
def test_a_node_that_does_not_see_the_path_is_named(files: Folder) -> None:
    files.open("map", "reduce")
    out = shared(files)
    with (
        HiddenCluster(2, [out]) as cluster,  # each has its own folder there
        pytest.raises(OutputUnseen, match="does not see the output") as caught,
    ):
        on_nodes(files).run(cluster.client)
    assert "mount the same file system" in caught.value.cure
    assert not names(out)


def test_a_node_is_killed_in_the_reduce_phase_and_the_server_too(files: Folder) -> None:
    wanted = files.alone()
    (files.gates / "reduce").unlink()
    with cortex.LocalCluster(nodes=3) as cluster:
        handle = on_nodes(files).run(cluster.client, detach=True)
        wait_for(lambda: handle.status().state == "reducing")
        writing = shared(files) / f".out.{handle.id}.shared" / "attempts"
        cluster.nodes["node1"].kill()
        restart(cluster)
        files.open("reduce")
        handle.wait()
        assert parts(shared(files) / "out") == wanted
        assert names(shared(files) / "out") == {"_SUCCESS", "_manifest.json", *wanted}
        assert names(shared(files)) == {"out"}
        assert not writing.exists()
