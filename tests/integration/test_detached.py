"""Jobs that go on without their client, on real processes: what is kept of them, for whom, how long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cortex
from cortex.client.cluster_session import Follower
from cortex.errors import (
    CortexError,
    InputError,
    NotAllowed,
    OutputExistsError,
    ResultsLost,
    UsageError,
    UserCodeError,
)
from cortex.wire import messages as m
from tests.integration.held_job import (
    LINES,
    PATIENCE_S,
    Folder,
    names,
    parts,
    restart,
    tasks_done,
    wait_for,
    where,
)
from tests.integration.hidden_cluster import HiddenCluster, can_hide


@pytest.fixture
def files(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "files")


@pytest.fixture(scope="module")
def cluster() -> Iterator[cortex.LocalCluster]:
    with cortex.LocalCluster(nodes=2) as found:
        yield found


def kept(cluster: cortex.LocalCluster, job: str) -> dict[str, set[str]]:
    """What nodes have of a job: node -> files in its folders of parts."""
    return {
        name: {path.name for path in (cluster.folder / name / "spill").glob(f"cortex-*/{job}/output/*")}
        for name in cluster.nodes
    }


def test_commands_submit_wait_fetch_and_forget(cluster: cortex.LocalCluster, files: Folder) -> None:
    wanted = files.alone()
    for stage in ("map", "reduce"):
        (files.gates / stage).unlink()
    submitted = files.command("mapreduce", "words.py:Words", "--detach", *where(cluster))
    assert submitted.returncode == 0, submitted.stderr
    job = submitted.stdout.strip()
    assert f"cortex job {job} --wait" in submitted.stderr
    assert f"cortex fetch {job} --output FOLDER" in submitted.stderr
    assert "is kept for   7 d" in submitted.stderr
    handle = cluster.client.job(job)
    assert handle.status().state in ("mapping", "reducing")  # and nobody is there who submitted it
    early = files.command("forget", job, *where(cluster))
    assert early.returncode == 2
    assert "is under way" in early.stderr
    files.open("map", "reduce")
    waited = files.command("job", job, "--wait", *where(cluster))
    assert waited.returncode == 0, waited.stderr
    assert "result kept until" in waited.stdout
    assert f"cortex fetch {job} --output FOLDER" in waited.stdout
    for output in ("one", "two"):
        fetched = files.command("fetch", job, "--output", output, *where(cluster))
        assert fetched.returncode == 0, fetched.stderr
        assert parts(files.path / output) == wanted
        assert names(files.path / output) == {"_SUCCESS", "_manifest.json", *wanted}
    assert "kept     at the cluster until 20" in fetched.stderr
    there = files.command("fetch", job, "--output", "one", *where(cluster))
    assert there.returncode == 2
    assert "--overwrite" in there.stderr
    assert files.command("fetch", job, "-o", "one", "--overwrite", *where(cluster)).returncode == 0
    shown = files.command("fetch", job, "--quiet", *where(cluster))
    assert shown.stdout.splitlines()[0] == "key,value"
    assert "a3,86" in shown.stdout.splitlines()
    ended = files.command("cancel", job, *where(cluster))
    assert "is done: it had ended before" in ended.stdout
    assert any(kept(cluster, job).values())
    assert files.command("forget", job, *where(cluster)).returncode == 0
    wait_for(lambda: not any(kept(cluster, job).values()), "nodes keep what was forgotten")
    gone = files.command("fetch", job, *where(cluster))
    assert gone.returncode == 1
    assert "no result of" in gone.stderr
    assert "cure:" in gone.stderr
    assert handle.status().state == "done"


def test_json_says_the_job(cluster: cortex.LocalCluster, files: Folder) -> None:
    files.open("map", "reduce")
    submitted = files.command(
        "mapreduce", "words.py:Words", "--detach", "--keep-results", "90m", "--json", *where(cluster)
    )
    said = json.loads(submitted.stdout)
    assert said == {"job": said["job"], "keep_results_s": 5400.0, "output": None}
    report = cluster.client.job(said["job"]).wait()
    assert report.rows_in == LINES
    left = cluster.client.job(said["job"]).status().kept_until - time.time()
    assert 5400 - PATIENCE_S < left <= 5400


def test_a_handle_waits_fetches_and_follows_from_python(cluster: cortex.LocalCluster, files: Folder) -> None:
    handle = files.job().run(cluster.client, detach=True)
    assert isinstance(handle, cortex.JobHandle)
    files.open("map", "reduce")
    seen: list[Any] = []
    result = handle.fetch(on_progress=seen.append)
    assert dict(result)["c"] == LINES
    assert result.path is None
    again = cluster.client.job(handle.id).fetch(files.path / "out")
    assert parts(files.path / "out") == files.alone()
    assert len(again) == len(result)
    with pytest.raises(OutputExistsError):
        handle.fetch(files.path / "out")
    handle.forget()
    with pytest.raises(ResultsLost, match="no result of"):
        handle.wait()


def test_a_job_names_the_folder_that_its_result_is_fetched_to(
    cluster: cortex.LocalCluster, files: Folder
) -> None:
    files.open("map", "reduce")
    handle = files.job(output=os.fspath(files.path / "named"), output_format="jsonl").run(
        cluster.client, detach=True
    )
    handle.wait()
    assert not (files.path / "named").exists()
    assert handle.fetch().path == os.fspath(files.path / "named")
    assert names(files.path / "named") >= {"_SUCCESS", "part-00000.jsonl"}


def test_a_result_expires_by_itself(cluster: cortex.LocalCluster, files: Folder) -> None:
    files.open("map", "reduce")
    handle = files.job().run(cluster.client, detach=True, keep_results=0.5)
    wait_for(lambda: handle.status().state == "done")
    wait_for(lambda: not any(kept(cluster, handle.id).values()), "a result that has expired is still there")
    with pytest.raises(ResultsLost, match="has expired"):
        handle.fetch()
    assert handle.status().kept_until == 0


def test_a_job_that_failed_says_why_and_one_that_was_cancelled_ends(
    cluster: cortex.LocalCluster, files: Folder
) -> None:
    wrong = files.job("Wrong").run(cluster.client, detach=True)
    files.open("map")
    for _ in range(2):  # whoever asks, and again
        with pytest.raises(UserCodeError, match="no such word") as caught:
            wrong.wait()
        assert "words.py" in caught.value.details["traceback"]
    waited = files.command("job", wrong.id, "--wait", *where(cluster))
    assert waited.returncode == 1
    with pytest.raises(UserCodeError):
        wrong.fetch(files.path / "out")
    assert not (files.path / "out").exists()
    (files.gates / "map").unlink()
    held = files.job().run(cluster.client, detach=True)
    held.cancel()
    with pytest.raises(CortexError, match="cancelled"):
        held.wait()


def test_only_its_user_and_admins_have_a_result(
    cluster: cortex.LocalCluster, files: Folder, tmp_path: Path
) -> None:
    files.open("map", "reduce")
    clients = []
    for name in ("ann", "bob"):
        made = files.command("token", "create", "--role", "client", "--uses", "1", *where(cluster))
        home = tmp_path / name
        assert files.command("login", made.stdout.split()[-1], "--home", str(home)).returncode == 0
        clients.append(cortex.Client(home=home))
    ann, bob = clients
    handle = files.job().run(ann, detach=True)
    handle.wait()
    for attempt in (
        lambda: bob.job(handle.id).fetch(),
        lambda: bob.job(handle.id).wait(),
        lambda: bob.job(handle.id).forget(),
    ):
        with pytest.raises(NotAllowed, match="no job of yours"):
            attempt()
    waited = files.command("job", handle.id, "--wait", "--home", str(tmp_path / "bob"))
    assert waited.returncode == 0, waited.stderr  # its state is for everybody
    assert dict(cluster.client.job(handle.id).fetch()) == dict(handle.fetch())  # the first is an admin
    elsewhere = tmp_path / "another machine of ann"
    elsewhere.mkdir(mode=0o700)
    subprocess.run(["cp", "-a", str(tmp_path / "ann" / "client"), str(elsewhere)], check=True)
    assert dict(cortex.Client(home=elsewhere).job(handle.id).fetch())["c"] == LINES


def test_a_job_that_is_not_detached_is_waited_for_and_not_fetched(
    cluster: cortex.LocalCluster, files: Folder
) -> None:
    command = [sys.executable, "-m", "cortex", "mapreduce", "words.py:Words", "-q", *where(cluster)]
    with subprocess.Popen(command, cwd=files.path, stdout=subprocess.PIPE, text=True) as process:
        before = {
            job.job for job in cluster.client.status().jobs if job.state in ("done", "failed", "cancelled")
        }
        wait_for(lambda: [j for j in cluster.client.status().jobs if j.job not in before])
        (job,) = [j.job for j in cluster.client.status().jobs if j.job not in before]
        with pytest.raises(UsageError, match="goes to the client that submitted it"):
            cluster.client.job(job).fetch()
        files.open("map", "reduce")
        assert cluster.client.job(job).wait().rows_in == LINES
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.skipif(not can_hide(), reason="no mount namespaces here")
def test_files_that_only_the_client_has_are_refused_at_once(files: Folder) -> None:
    files.open("map", "reduce")
    with HiddenCluster(1, [files.path]) as cluster:
        with pytest.raises(InputError, match="at the client") as caught:
            files.job().run(cluster.client, detach=True)
        assert caught.value.details["file"] == os.fspath(files.path / "in.txt")
        assert "a path that all nodes see" in caught.value.cure
        (job,) = cluster.client.status().jobs
        assert job.state == "failed"


def test_files_below_data_roots_are_had_of_the_nodes_that_hold_them(files: Folder, tmp_path: Path) -> None:
    wanted = files.alone()
    other = tmp_path / "other"
    other.mkdir()
    with cortex.LocalCluster(nodes=2, data=[files.path, other]) as cluster:
        for number, path in enumerate((os.fspath(files.path / "in.txt"), "data:in.txt")):
            handle = files.job(input=path).run(cluster.client, detach=True)
            handle.fetch(files.path / f"out{number}")
            assert parts(files.path / f"out{number}") == wanted
    with (
        cortex.LocalCluster(nodes=2, data=[other, other]) as cluster,
        pytest.raises(InputError, match="at the client"),
    ):
        files.job().run(cluster.client, detach=True)


def test_one_machine_detaches_nothing(files: Folder) -> None:
    alone = files.command("mapreduce", "words.py:Words", "--detach", "--server", "local")
    assert alone.returncode == 2
    assert "needs a cluster" in alone.stderr
    nowhere = files.command("mapreduce", "words.py:Words", "--detach")
    assert nowhere.returncode == 2
    assert "not logged in to a cluster" in nowhere.stderr
    unasked = files.command("mapreduce", "words.py:Words", "--keep-results", "1h")
    assert unasked.returncode == 2
    assert "add --detach" in unasked.stderr
    with pytest.raises(UsageError, match="cannot be kept for 1000d"):
        files.job().run(detach=True, keep_results="1000d")


def test_the_server_is_killed_while_the_job_runs_and_when_it_is_done(files: Folder) -> None:
    wanted = files.alone()
    (files.gates / "reduce").unlink()
    with cortex.LocalCluster(nodes=2) as cluster:
        handle = files.job().run(cluster.client, detach=True)
        wait_for(lambda: tasks_done(handle, "map"))
        restart(cluster)
        files.open("reduce")
        handle.wait()
        until = handle.status().kept_until
        assert until > time.time() + 6 * 86_400
        restart(cluster)
        handle.fetch(files.path / "out")
        assert parts(files.path / "out") == wanted
        wait_for(lambda: handle.status().kept_until == until, "its expiry has moved")
        handle.forget()
        wait_for(lambda: not any(kept(cluster, handle.id).values()))


def test_the_server_and_then_a_node_are_killed_while_the_result_is_fetched(
    files: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = files.alone()
    with cortex.LocalCluster(nodes=2) as cluster:
        handle = files.job().run(cluster.client, detach=True)
        handle.wait()
        victim = next(name for name, found in kept(cluster, handle.id).items() if found)
        is_done = Follower._is_done
        heard: list[m.JobDone] = []

        def killing(self: Follower, done: m.JobDone) -> None:
            heard.append(done)
            if len(heard) == 1:
                restart(cluster)
            elif len(heard) == 2:
                cluster.nodes[victim].kill()
            is_done(self, done)

        monkeypatch.setattr(Follower, "_is_done", killing)
        handle.fetch(files.path / "out")
        assert parts(files.path / "out") == wanted
        assert len(heard) > 1
        assert len({done.expires_at for done in heard}) == 1


def test_parts_that_are_lost_with_their_node_are_made_anew(files: Folder) -> None:
    wanted = files.alone()
    with cortex.LocalCluster(nodes=2) as cluster:
        handle = files.job().run(cluster.client, detach=True)
        handle.wait()
        victim = next(name for name, found in kept(cluster, handle.id).items() if found)
        cluster.nodes[victim].kill()
        handle.fetch(files.path / "out")
        assert parts(files.path / "out") == wanted


class HastyCluster(cortex.LocalCluster):
    """Its server keeps map outputs for a second after a job's end, not for an hour."""

    def _command(self, name: str) -> list[str]:
        if name != "server":
            return super()._command(name)
        code = (
            "import sys, cortex.server.kept_results as k; k.MAPS_KEPT_S = 1.0;"
            "from cortex.__main__ import main; sys.exit(main())"
        )
        return [sys.executable, "-P", "-c", code]


def test_only_the_result_is_kept_for_long_and_lost_with_its_node(files: Folder) -> None:
    wanted = files.alone()
    with HastyCluster(nodes=2) as cluster:
        handle = files.job().run(cluster.client, detach=True)
        handle.wait()
        wait_for(lambda: job_folders(cluster, handle.id) == {"output"}, "map outputs are kept")
        handle.fetch(files.path / "out")
        assert parts(files.path / "out") == wanted
        victim = next(name for name, found in kept(cluster, handle.id).items() if found)
        cluster.nodes[victim].kill()
        with pytest.raises(ResultsLost, match="were lost with the node that kept them") as caught:
            handle.fetch(files.path / "again")
        assert "part-0000" in caught.value.details["parts"]
        assert "fetch a result soon" in caught.value.cure
        assert not (files.path / "again").exists()
        assert handle.status().state == "failed"
        wait_for(lambda: not any(kept(cluster, handle.id)[name] for name in cluster.nodes if name != victim))


def test_a_result_counts_against_its_nodes_quota_until_it_is_forgotten(files: Folder) -> None:
    files.open("map", "reduce")
    with HastyCluster(nodes=1) as cluster:
        handle = files.job("Large").run(cluster.client, detach=True)
        bytes_out = handle.wait().bytes_out
        assert bytes_out > 5_000_000
        wait_for(lambda: job_folders(cluster, handle.id) == {"output"})
        wait_for(lambda: bytes_out <= spilled(cluster) < bytes_out + 1_000_000, "the result is not counted")
        handle.forget()
        wait_for(lambda: spilled(cluster) < 1_000_000, "what was forgotten is counted")


def spilled(cluster: cortex.LocalCluster) -> int:
    return sum(node.spill_bytes for node in cluster.client.status().nodes)


def job_folders(cluster: cortex.LocalCluster, job: str) -> set[str]:
    """What lies in the job's folders at nodes."""
    found = (
        path for name in cluster.nodes for path in (cluster.folder / name / "spill").glob(f"cortex-*/{job}/*")
    )
    return {path.name for path in found}
