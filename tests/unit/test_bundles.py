"""A job's files on their way: what is packed, refused, kept, checked, laid out and removed."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from cortex.client.bundle_packing import PackedBundle, pack
from cortex.errors import (
    BundleFailed,
    BundleTooLarge,
    CortexError,
    InputChanged,
    PackageMissing,
    ProtocolError,
    UsageError,
)
from cortex.job.bundle import Bundle, BundleFile, Package
from cortex.wire import messages as m
from tests.bundle_tools import Desk, FetchingNode, settle, speak, store, tree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "pkg" / "__pycache__").mkdir(parents=True)
    (folder / "pkg" / "__init__.py").write_text("A = 1\n")
    (folder / "pkg" / "words.txt").write_text("some words")
    (folder / "pkg" / "__pycache__" / "x.pyc").write_text("")
    (folder / "one.py").write_text("B = 2\n")
    (folder / "same").write_text("some words")
    (folder / "empty").write_text("")
    return folder


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(str(tmp_path / "blobs"))


def packed_of(source: Path) -> PackedBundle:
    return pack(
        {"same": str(source / "same"), "pkg": str(source / "pkg"), "empty": str(source / "empty")},
        [str(source / "one.py"), str(source / "pkg")],
    )


# --- packing ---


def test_what_is_packed(source: Path) -> None:
    packed = packed_of(source)
    assert packed.bundle.names("module") == ["one.py", "pkg/__init__.py", "pkg/words.txt"]
    assert packed.bundle.names("file") == [
        "same", "pkg/__init__.py", "pkg/__pycache__/x.pyc", "pkg/words.txt", "empty",
    ]  # fmt: skip
    assert len(packed.bundle.files) == 8
    assert len(packed.sources) == 4  # equal bytes travel once
    assert sum(packed.bundle.blobs().values()) == len("some words") + 6 + 6


def test_links_to_files_are_followed_and_those_to_folders_named(source: Path) -> None:
    (source / "pkg" / "link").symlink_to(source / "same")
    assert "pkg/link" in pack({"pkg": str(source / "pkg")}, []).bundle.names("file")
    (source / "pkg" / "up").symlink_to(source)
    with pytest.raises(UsageError, match="pkg/up is a link to a folder, which is not followed"):
        pack({"pkg": str(source / "pkg")}, [])


def test_what_cannot_be_packed_is_named(source: Path) -> None:
    os.mkfifo(source / "pipe")
    (source / "nothing").mkdir()
    (source / "bad\nname").mkdir()
    (source / "bad\nname" / "x").write_text("")
    with pytest.raises(UsageError, match="pipe is neither a file nor a folder"):
        pack({"pipe": str(source / "pipe")}, [])
    with pytest.raises(UsageError, match="nothing has no file in it"):
        pack({"n": str(source / "nothing")}, [])
    with pytest.raises(UsageError, match="gone, which is to travel with the job, cannot be read: No such"):
        pack({"gone": str(source / "gone")}, [])
    with pytest.raises(UsageError, match="it has a control character"):
        pack({"all": str(source)}, [])


def test_the_largest_files_are_named_when_it_is_too_much(source: Path) -> None:
    with (
        mock.patch("cortex.client.bundle_packing.BUNDLE_BYTES_MAX", 20),
        pytest.raises(BundleTooLarge) as raised,
    ):
        packed_of(source)
    assert str(source / "same") in raised.value.details
    assert "at most 20 B travel with a job" in raised.value.message
    with (
        mock.patch("cortex.client.bundle_packing.BUNDLE_FILES_MAX", 7),
        pytest.raises(BundleTooLarge) as raised,
    ):
        packed_of(source)
    assert "more than 7 files would travel" in raised.value.message


def test_a_file_that_changes_is_not_sent(source: Path, desk: Desk) -> None:
    for change in ("other bytes?", "other", "other size of it all"):
        packed = packed_of(source)
        (source / "same").write_text(change)
        (source / "pkg" / "words.txt").write_text(change)
        client = object()
        with pytest.raises(InputChanged, match="changed while it was sent"):
            store(desk, client, packed)
        desk.desk.client_lost(client)
        desk.to_clients.clear()
        settle(desk)
        assert desk.blobs() == []
        (source / "same").write_text("some words")
        (source / "pkg" / "words.txt").write_text("some words")


# --- the server's desk ---


def test_blobs_are_kept_for_a_job_and_sent_once(source: Path, desk: Desk) -> None:
    packed, first, second = packed_of(source), object(), object()
    store(desk, first, packed)
    desk.desk.submitted(first, "j1", packed.bundle)
    desk.desk.client_lost(first)
    settle(desk)
    assert desk.blobs() == sorted(packed.bundle.blobs())
    desk.desk.offer(second, m.OfferBlobs(packed.bundle.blobs()))
    assert desk.to_clients.popleft() == (second, m.BlobsWanted((), 1 << 20))
    desk.desk.job_ended("j1")
    settle(desk)
    assert desk.blobs() == sorted(packed.bundle.blobs())  # the second client has a hold on them
    desk.desk.submitted(second, "j2", packed.bundle)
    desk.desk.job_ended("j2")
    desk.desk.job_ended("j2")
    settle(desk)
    assert desk.blobs() == []
    assert not desk.desk._holders


def test_the_store_is_private_and_read_only(source: Path, desk: Desk) -> None:
    packed = packed_of(source)
    store(desk, object(), packed)
    assert stat.S_IMODE(os.stat(desk.folder).st_mode) == 0o700
    for name in desk.blobs():
        assert stat.S_IMODE(os.stat(os.path.join(desk.folder, name)).st_mode) == 0o400


def test_a_job_comes_after_its_files(source: Path, desk: Desk) -> None:
    packed, client = packed_of(source), object()
    with pytest.raises(ProtocolError, match="before the files"):
        desk.desk.submitted(client, "j1", packed.bundle)
    store(desk, client, packed)
    other = Bundle((BundleFile("file", "x", "0" * 64, 1),))
    with pytest.raises(ProtocolError, match="before the files"):
        desk.desk.submitted(client, "j1", other)
    with pytest.raises(ProtocolError, match="before the files"):  # another client's
        desk.desk.submitted(object(), "j1", packed.bundle)


SHA = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"  # of b"test"


def offered(desk: Desk, size: int = 4) -> Any:
    client = object()
    desk.desk.offer(client, m.OfferBlobs({SHA: size}))
    desk.thread.all()
    assert desk.to_clients.popleft() == (client, m.BlobsWanted((SHA,), 1 << 20))
    return client


@pytest.mark.parametrize(
    ("size", "puts", "said"),
    [
        (4, [(SHA, b"tess", True)], "arrived with other bytes"),
        (4, [(SHA, b"tes", True)], "arrived with other bytes"),
        (4, [(SHA, b"te", False), (SHA, b"sts", True)], "more than the 4 bytes"),
        (4, [("0" * 64, b"test", True)], "out of turn"),
    ],
)
def test_bytes_that_are_not_what_was_offered_are_refused(
    desk: Desk, size: int, puts: list[tuple[str, bytes, bool]], said: str
) -> None:
    client = offered(desk, size)
    for put in puts:
        desk.desk.put(client, m.PutBlob(*put))
    desk.thread.all()
    assert [each for each, _ in desk.refused] == [client]
    assert said in desk.refused[0][1].message
    desk.desk.client_lost(client)
    desk.thread.all()
    assert desk.blobs() == []


@pytest.mark.parametrize(
    "blobs", [{}, {"../x": 1}, {SHA: 1 << 40}, {SHA: -1}, {SHA.upper(): 1}, {f"{SHA}\n": 1}]
)
def test_offers_that_cannot_be_are_refused(desk: Desk, blobs: dict[str, int]) -> None:
    with pytest.raises(ProtocolError):
        desk.desk.offer(object(), m.OfferBlobs(blobs))


def test_credit_and_turns_are_kept(desk: Desk) -> None:
    client = offered(desk, 3 << 20)
    with pytest.raises(ProtocolError, match="offered twice"):
        desk.desk.offer(client, m.OfferBlobs({SHA: 4}))
    desk.desk.put(client, m.PutBlob(SHA, bytes(1 << 20), False))
    with pytest.raises(ProtocolError, match="credit"):
        desk.desk.put(client, m.PutBlob(SHA, b"x", False))
    with pytest.raises(ProtocolError, match="not asked for"):
        desk.desk.put(object(), m.PutBlob(SHA, b"x", True))


def test_a_client_that_leaves_half_way_leaves_nothing(desk: Desk) -> None:
    client = offered(desk)
    desk.desk.put(client, m.PutBlob(SHA, b"te", False))
    desk.thread.all()
    assert len(desk.blobs()) == 1
    desk.desk.put(client, m.PutBlob(SHA, b"st", True))
    desk.desk.client_lost(client)  # while its last bytes wait to be written
    desk.thread.all()
    assert desk.blobs() == []


def test_a_server_that_comes_back_keeps_what_its_jobs_need(source: Path, tmp_path: Path, desk: Desk) -> None:
    packed = packed_of(source)
    client = object()
    store(desk, client, packed)
    (tmp_path / "blobs" / f"{SHA}.1234.part").write_text("half")
    again = Desk(desk.folder)
    again.desk.open({"j1": Bundle(packed.bundle.files[:1])})
    again.thread.all()
    assert again.blobs() == [packed.bundle.files[0].sha256]
    again.desk.job_ended("j1")
    again.thread.all()
    assert again.blobs() == []


def test_a_disk_that_takes_nothing_is_named(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("in the way")
    client = object()
    desk.desk.offer(client, m.OfferBlobs({SHA: 4}))
    desk.thread.all()
    assert desk.refused[0][0] is client
    assert "blobs" in desk.refused[0][1].message


def test_a_disk_is_not_filled_to_its_end(desk: Desk, tmp_path: Path) -> None:
    free_bytes = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    with mock.patch("cortex.storage.blob_store.SPILL_RESERVE_BYTES", free_bytes + (1 << 30)):
        client = offered(desk)
        desk.desk.put(client, m.PutBlob(SHA, b"test", True))
        desk.thread.all()
    assert desk.refused[0][0] is client
    error = desk.refused[0][1]
    assert error.message == f"no space for a file of the job, of 4 B, in {desk.folder}"
    assert "are kept free" in error.details["cause"]
    assert desk.blobs() == []


# --- the node ---


def submitted(desk: Desk, source: Path, job: str = "j1") -> Bundle:
    packed, client = packed_of(source), object()
    store(desk, client, packed)
    desk.desk.submitted(client, job, packed.bundle)
    return packed.bundle


def test_files_are_laid_out_read_only_in_the_jobs_folder(source: Path, desk: Desk, tmp_path: Path) -> None:
    node, folder = FetchingNode("n1"), tmp_path / "job"
    node.fetch.prepare("j1", submitted(desk, source), str(folder), ())
    settle(desk, node)
    assert node.ready == ["j1"]
    assert node.failed == []
    assert tree(str(folder)) == {
        "file/same": b"some words",
        "file/empty": b"",
        "file/pkg/__init__.py": b"A = 1\n",
        "file/pkg/words.txt": b"some words",
        "file/pkg/__pycache__/x.pyc": b"",
        "module/one.py": b"B = 2\n",
        "module/pkg/__init__.py": b"A = 1\n",
        "module/pkg/words.txt": b"some words",
    }
    for above, _, names in os.walk(folder):
        assert stat.S_IMODE(os.stat(above).st_mode) == 0o700
        assert all(stat.S_IMODE(os.stat(os.path.join(above, name)).st_mode) == 0o400 for name in names)


def failure(desk: Desk, node: FetchingNode) -> CortexError:
    settle(desk, node)
    assert node.ready == []
    ((job, error),) = node.failed
    assert job == "j1"
    assert error.details["node"] == "n1"
    return error


def test_names_that_lead_out_are_refused_by_the_node_too(source: Path, desk: Desk, tmp_path: Path) -> None:
    good = submitted(desk, source).files[0]
    for name in ("../out", "/abs", "a/../../out"):
        node = FetchingNode("n1")
        bundle = Bundle((BundleFile("file", name, good.sha256, good.size_bytes),))
        node.fetch.prepare("j1", bundle, str(tmp_path / "job"), ())
        assert "cannot be named" in failure(desk, node).message
    assert sorted(os.listdir(tmp_path)) == ["blobs", "source"]


def test_damaged_files_are_not_laid_out(source: Path, desk: Desk, tmp_path: Path) -> None:
    bundle, node = submitted(desk, source), FetchingNode("n1")
    path = os.path.join(desk.folder, bundle.files[0].sha256)
    os.chmod(path, 0o600)
    Path(path).write_text("other word")
    node.fetch.prepare("j1", bundle, str(tmp_path / "job"), ())
    error = failure(desk, node)
    assert isinstance(error, BundleFailed)
    assert "arrived with other bytes" in error.message
    assert not os.path.exists(tmp_path / "job" / "file")


def test_lost_files_are_told(source: Path, desk: Desk, tmp_path: Path) -> None:
    bundle, node = submitted(desk, source), FetchingNode("n1")
    os.unlink(os.path.join(desk.folder, bundle.files[0].sha256))
    node.fetch.prepare("j1", bundle, str(tmp_path / "job"), ())
    assert "the server has lost a file of the job" in failure(desk, node).message
    gone = FetchingNode("n1")
    desk.desk.job_ended("j1")
    gone.fetch.prepare("j1", bundle, str(tmp_path / "other"), ())
    assert "no such file of the job any more" in failure(desk, gone).message


def test_another_jobs_files_are_not_given(source: Path, desk: Desk, tmp_path: Path) -> None:
    bundle, node = submitted(desk, source), FetchingNode("n1")
    node.fetch.prepare("j2", bundle, str(tmp_path / "job"), ())
    settle(desk, node)
    assert node.failed[0][0] == "j2"
    assert "no such file" in node.failed[0][1].message


def test_a_job_that_ends_meanwhile_is_let_go_when_nothing_is_written(
    source: Path, desk: Desk, tmp_path: Path
) -> None:
    bundle, node = submitted(desk, source), FetchingNode("n1")
    gone: list[str] = []
    node.fetch.prepare("j1", bundle, str(tmp_path / "job"), ())
    node.thread.all()
    while speak(node, desk):
        pass
    desk.thread.all()
    _, chunk = desk.to_nodes.popleft()
    node.hear(chunk)  # waits for the disk
    node.fetch.forget("j1", lambda: gone.append("j1"))
    assert gone == []
    node.thread.all()
    assert gone == ["j1"]
    settle(desk, node)
    assert node.ready == []
    assert node.failed == []
    node.fetch.forget("unknown", lambda: gone.append("unknown"))
    assert gone == ["j1", "unknown"]


def test_a_node_asks_no_more_than_it_may(source: Path, desk: Desk) -> None:
    bundle = submitted(desk, source)
    ask = m.FetchBlob("n1", "j1", bundle.files[0].sha256, 1)
    desk.desk.fetch(ask)
    with pytest.raises(ProtocolError, match="asked for again"):
        desk.desk.fetch(ask)
    desk.desk.node_lost("n1")
    desk.desk.fetch(ask)


def test_a_package_that_is_missing_is_named_with_the_pip_line(desk: Desk, tmp_path: Path) -> None:
    node = FetchingNode("n1")
    packages = (
        Package("pyarrow", "pyarrow==21"),
        Package("no_such_pkg", "no-such==1.2"),
        Package("mylib", "", "/home/me/mylib.py"),
    )
    node.fetch.prepare("j1", Bundle((), packages), str(tmp_path / "job"), ())
    error = failure(desk, node)
    assert isinstance(error, PackageMissing)
    assert error.message == "node n1 lacks the packages no_such_pkg, mylib, which the job imports"
    assert "-m pip install 'no-such==1.2'" in error.cure
    assert "modules: [/home/me/mylib.py] in the job, so that it travels along" in error.cure
    assert not os.path.exists(tmp_path / "job")


def test_packages_are_looked_for_where_the_job_imports_from(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "just_installed.py").write_text("raise SystemExit  # never imported by the node\n")
    node = FetchingNode("n1")
    bundle = Bundle((), (Package("just_installed", ""),))
    node.fetch.prepare("j1", bundle, str(tmp_path / "job"), (str(tmp_path / "lib"),))
    settle(desk, node)
    assert node.ready == ["j1"]
