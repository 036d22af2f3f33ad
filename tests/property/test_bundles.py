"""What travels with a job: names that stay below their folder, and files that arrive as they were."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.client.bundle_packing import pack
from cortex.errors import ProtocolError
from cortex.job.bundle import Bundle, BundleFile, check_bundle, folders_of, name_problem
from tests.bundle_tools import Desk, FetchingNode, listen, settle, speak, store, tree

PARTS = st.text(alphabet="ab.\\/\x00\n~é", max_size=6) | st.sampled_from(["..", ".", "", "a" * 256, "\udc80"])
NAMES = st.lists(PARTS, max_size=4).map("/".join) | st.text(max_size=12)


@given(NAMES)
def test_a_name_that_is_taken_stays_below_its_folder(name: str) -> None:
    if name_problem(name):
        return
    path = os.path.join("/job/file", name)
    assert os.path.normpath(path) == path
    assert path.startswith("/job/file/")
    assert "\0" not in path
    assert all(len(os.fsencode(part)) <= 255 for part in path.split("/"))
    assert all(folder == os.path.normpath(folder) for folder in folders_of([name]))


@given(st.lists(NAMES, min_size=1, max_size=4))
def test_a_bundle_that_is_taken_can_be_laid_out(names: list[str]) -> None:
    bundle = Bundle(tuple(BundleFile("file", name, "0" * 64, 1) for name in names))
    try:
        check_bundle(bundle)
    except ProtocolError:
        twice = len(set(names)) < len(names) or bool(folders_of(names) & set(names))
        assert twice or any(map(name_problem, names))
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "x"):
                pass
        assert set(tree(folder)) == set(names)


@pytest.fixture(scope="module")
def _small() -> Iterator[None]:
    """Limits so small that every file has several chunks, and waits for credit and for its turn."""
    with (
        mock.patch("cortex.client.bundle_packing.BLOB_CHUNK_BYTES", 3),
        mock.patch("cortex.transfer.blob_streams.BLOB_CHUNK_BYTES", 3),
        mock.patch("cortex.transfer.blob_streams.BLOB_CREDIT_BYTES", 7),
        mock.patch("cortex.transfer.blob_streams.BLOB_STREAMS_MAX", 2),
        mock.patch("cortex.transfer.bundle_fetch.BLOB_CREDIT_BYTES", 7),
        mock.patch("cortex.transfer.bundle_fetch.BLOB_REQUESTS_MAX", 3),
        mock.patch("cortex.server.blob_desk.BLOB_CREDIT_BYTES", 7),
    ):
        yield


TREES = st.dictionaries(
    st.sampled_from(["a", "b", "c/d", "c/e/f", "c/g", "h.txt"]), st.binary(max_size=20), min_size=1
)


@pytest.mark.usefixtures("_small")
@settings(deadline=None)
@given(TREES, st.lists(st.integers(0, 8), max_size=200), st.booleans())
def test_files_arrive_as_they_were_in_any_order_of_events(
    files: dict[str, bytes], order: list[int], one_leaves: bool
) -> None:
    with tempfile.TemporaryDirectory() as home:
        source = os.path.join(home, "source")
        for name, data in files.items():
            os.makedirs(os.path.dirname(os.path.join(source, name)), exist_ok=True)
            with open(os.path.join(source, name), "wb") as file:
                file.write(data)
        packed = pack({"all": source}, [])
        desk, client = Desk(os.path.join(home, "blobs")), object()
        store(desk, client, packed)
        assert desk.blobs() == sorted(packed.bundle.blobs())
        desk.desk.submitted(client, "j1", packed.bundle)
        desk.desk.client_lost(client)
        nodes = {name: FetchingNode(name) for name in ("n1", "n2")}
        for name, node in nodes.items():
            node.fetch.prepare("j1", packed.bundle, os.path.join(home, name), ())
        one, two = nodes.values()

        def cut() -> None:
            """The first node's link is lost, with all that was on its way, and it dials again."""
            desk.desk.node_lost("n1")
            desk.to_nodes = type(desk.to_nodes)(each for each in desk.to_nodes if each[0] != "n1")
            one.said.clear()
            one.fetch.server_back()

        for choice in order:
            (
                desk.thread.step,
                lambda: listen(desk, nodes),
                one.thread.step,
                two.thread.step,
                lambda: speak(one, desk),
                lambda: speak(two, desk),
                lambda: speak(one, desk),
                one.thread.step,
                cut,
            )[choice]()
            assert sum(len(m.data) for to, m in desk.to_nodes if to == "n1") <= 7
        if one_leaves:
            desk.desk.node_lost("n2")
            desk.to_nodes = type(desk.to_nodes)(each for each in desk.to_nodes if each[0] != "n2")
            two.said.clear()
            two.thread.stop()
            settle(desk, one)
        else:
            settle(desk, one, two)
            assert two.ready == ["j1"]
        assert one.ready == ["j1"]
        expected = {f"file/all/{name}": data for name, data in files.items()}
        assert tree(os.path.join(home, "n1")) == expected
        desk.desk.job_ended("j1")
        settle(desk, one)
        assert desk.blobs() == []
