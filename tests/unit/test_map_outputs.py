"""Where map outputs are: what the server keeps of a map, what nodes are told, and what a reduce reads."""

from __future__ import annotations

from typing import Any

import pytest

from cortex.errors import InternalError, ProtocolError
from cortex.ids import AttemptId, JobId, job_of, map_attempt
from cortex.limits import MAP_BLOCKS_MAX, MAP_ROWS_KEPT_MAX
from cortex.scheduling import map_outputs as server
from cortex.scheduling.map_outputs import MapOutputs, Redo
from cortex.wire import messages as m
from cortex.wire.framing import FrameDecoder, encode_frame
from cortex.wire.map_locations import LocationTable, MapOutput, map_outputs

JOB = JobId("j000000000001")
A, B, C = (m.OutputNode(name, f"{name}:8787") for name in "abc")


def accept(
    outputs: MapOutputs,
    index: int,
    rows: tuple[int, ...],
    node: m.OutputNode = A,
    number: int = 0,
    **more: Any,
) -> Redo:
    return outputs.accept(m.MapResult(index, m.TaskStats(), rows, **more), number, node)


def told(
    outputs: MapOutputs, table: LocationTable | None = None, version: int = 0, nodes: int = 0
) -> LocationTable:
    """What a node makes of the news, which go through the wire."""
    table = table or LocationTable()
    news = outputs.news(version, nodes)
    if news is not None:
        table.update(next(FrameDecoder[m.MapLocations](m.MapLocations).feed(encode_frame(news))))
    return table


def read(outputs: MapOutputs, table: LocationTable, partition: int) -> list[tuple[int, int, str]]:
    """(map, attempt number, node) of a reduce's inputs."""
    found = []
    for output in map_outputs(table.fill(m.ReduceTask(partition, outputs.spans(partition))).inputs, JOB):
        named = map_attempt(output.attempt)
        assert named is not None
        assert named[:2] == (JOB, output.map_index)
        found.append((output.map_index, named[2], table.nodes[output.node].node))
    return found


def test_a_reduce_reads_in_map_order_what_was_written_for_it_where_it_was_made() -> None:
    outputs = MapOutputs(JOB, 6, 3)
    for index, rows, node in ((4, (1, 0, 0), B), (0, (1, 2, 0), A), (1, (3, 0, 0), A), (2, (0, 0, 0), B)):
        assert accept(outputs, index, rows, node) is Redo.SAME
    accept(outputs, 5, (1, 7, 0), A)
    accept(outputs, 3, (2, 5, 0), B)
    table = told(outputs)
    assert read(outputs, table, 0) == [(0, 0, "a"), (1, 0, "a"), (3, 0, "b"), (4, 0, "b"), (5, 0, "a")]
    assert read(outputs, table, 1) == [(0, 0, "a"), (3, 0, "b"), (5, 0, "a")]
    assert read(outputs, table, 2) == []
    assert [outputs.expected_rows(p) for p in range(3)] == [8, 14, 0]
    assert outputs.all_rows() == 22
    assert outputs.spans(0) == (0, 2, 3, 6)
    assert outputs.news(outputs.version, outputs.nodes) is None


def test_what_was_made_anew_is_told_and_nothing_else() -> None:
    outputs = MapOutputs(JOB, 4, 1)
    for index in range(4):
        accept(outputs, index, (1,), (A, B)[index % 2])
    table, seen = told(outputs), (outputs.version, outputs.nodes)
    assert outputs.news(0, 0) is outputs.news(0, 0)  # one message for all nodes that know as much
    assert outputs.lost_with("b") == [1, 3]
    assert outputs.lost_with("b") == []
    for index in (1, 3):
        outputs.lose([index])
        assert not outputs.is_current(index, 0)
        assert accept(outputs, index, (1,), (C, B)[index // 2], 1) is Redo.SAME
    news = outputs.news(*seen)
    assert news is not None
    assert [block.first for block in news.blocks] == [1, 3]
    assert news.nodes == (C, B)  # b in its second life
    told(outputs, table, *seen)
    assert read(outputs, table, 0) == [(0, 0, "a"), (1, 1, "c"), (2, 0, "a"), (3, 1, "b")]
    assert read(outputs, told(outputs), 0) == read(outputs, table, 0)  # a node that is told all at once
    assert outputs.expected_rows(0) == 4
    assert outputs.lost_with("b") == [3]


def test_an_output_that_is_redone_twice_on_one_node_is_lost_with_it_once() -> None:
    outputs = MapOutputs(JOB, 1, 1)
    for number in range(3):
        accept(outputs, 0, (1,), A, number)
        outputs.lose([0])
    accept(outputs, 0, (1,), A, 3)
    assert outputs.lost_with("a") == [0]


def test_an_attempt_named_as_lost_must_have_been_an_input() -> None:
    outputs = MapOutputs(JOB, 2, 1)
    accept(outputs, 0, (1,))
    accept(outputs, 1, (1,))
    first = outputs.version
    assert outputs.was_input(0, 0, first)
    assert not outputs.was_input(0, 1, first)
    assert not outputs.was_input(2, 0, first)
    outputs.lose([0])
    assert outputs.was_input(0, 0, first)  # another reduce was quicker to miss it
    accept(outputs, 0, (1,), number=1)
    assert outputs.was_input(0, 0, first)
    assert not outputs.was_input(0, 0, outputs.version)  # a reduce that was sent the new one
    assert outputs.was_input(0, 1, outputs.version)


def test_a_reduce_cannot_be_told_of_outputs_that_are_not_there() -> None:
    outputs = MapOutputs(JOB, 2, 1)
    accept(outputs, 0, (1,))
    accept(outputs, 1, (1,))
    outputs.lose([1])
    with pytest.raises(InternalError, match="while a map had no output"):
        outputs.news(0, 0)


@pytest.mark.parametrize("rows", [(1,), (1, 2, 3), (1, -1), (1, 1 << 64), (1 << 44, 1)])
def test_counts_that_do_not_fit_are_refused(rows: tuple[int, ...]) -> None:
    with pytest.raises(InternalError, match="map 0 counted rows"):
        accept(MapOutputs(JOB, 1, 2), 0, rows)


def test_sums_of_the_largest_counts_do_not_spill_over() -> None:
    most = (1 << 44) - 1
    outputs = MapOutputs(JOB, 3000, 3)
    for index in range(3000):
        accept(outputs, index, (most, 0, most))
    assert [outputs.expected_rows(p) for p in range(3)] == [3000 * most, 0, 3000 * most]
    assert outputs.all_rows() == 6000 * most


def test_a_redo_with_other_counts_takes_their_place_while_they_are_known() -> None:
    outputs = MapOutputs(JOB, 3, 2)
    accept(outputs, 0, (4, 0))
    accept(outputs, 1, (1, 1))
    accept(outputs, 2, (0, 1))
    outputs.lose([0])
    assert accept(outputs, 0, (0, 5), number=1) is Redo.OTHER
    assert [outputs.expected_rows(p) for p in (0, 1)] == [1, 7]
    assert (outputs.spans(0), outputs.spans(1)) == ((1, 2), (0, 3))
    outputs.lose([0])
    assert accept(outputs, 0, (0, 5), number=2) is Redo.SAME
    outputs.lose([0])
    assert accept(outputs, 0, (0, 5), number=3, row_checksum=9) is Redo.OTHER


def test_in_a_large_job_only_a_redo_with_the_same_counts_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAP_ROWS_KEPT_MAX", 5)
    outputs = MapOutputs(JOB, 3, 2)
    for index in range(3):
        accept(outputs, index, (4, 2))
    outputs.lose([0])
    assert accept(outputs, 0, (4, 2), number=1) is Redo.SAME
    assert [outputs.expected_rows(p) for p in (0, 1)] == [12, 6]
    outputs.lose([1])
    assert accept(outputs, 1, (4, 2), number=1, row_checksum=9) is Redo.OTHER
    outputs.lose([2])
    assert accept(outputs, 2, (4, 3), number=1) is Redo.UNCOUNTED


def test_many_maps_are_told_of_in_blocks_and_a_partition_reads_whole_ones() -> None:
    maps = 2 * MAP_BLOCKS_MAX + 7  # three in a block
    assert maps * 2 < MAP_ROWS_KEPT_MAX
    outputs = MapOutputs(JOB, maps, 2)
    for index in range(maps):
        accept(outputs, index, (1, index == 100), (A, B)[index // 1000 % 2])
    assert outputs.spans(0) == (0, maps)
    assert outputs.spans(1) == (99, 102)  # may be read in vain, never left out
    table = told(outputs)
    assert [output[:2] for output in read(outputs, table, 0)] == [(index, 0) for index in range(maps)]
    assert read(outputs, table, 1) == [(99, 0, "a"), (100, 0, "a"), (101, 0, "a")]
    outputs.lose([100])
    accept(outputs, 100, (1, 1), B, 1)
    told(outputs, table, outputs.version - 1, 2)
    assert read(outputs, table, 1) == [(99, 0, "a"), (100, 1, "b"), (101, 0, "a")]


# --- the node's side ------------------------------------------------------------------------------


def locations(*blocks: m.MapBlock, first_node: int = 0, nodes: int = 2) -> m.MapLocations:
    return m.MapLocations(JOB, first_node, (A, B, C)[first_node:nodes], blocks)


def test_outputs_are_named_in_order() -> None:
    blocks = [m.MapBlock(3, (2, 1, 1, 0), {4: 2}), m.MapBlock(9, (1, 0))]
    assert list(map_outputs(blocks, JOB)) == [
        MapOutput(3, AttemptId(f"{JOB}-m000003.0"), 1),
        MapOutput(4, AttemptId(f"{JOB}-m000004.2"), 1),
        MapOutput(5, AttemptId(f"{JOB}-m000005.0"), 0),
        MapOutput(9, AttemptId(f"{JOB}-m000009.0"), 0),
    ]


@pytest.mark.parametrize(
    ("block", "problem"),
    [
        (m.MapBlock(0, (1,)), "not in pairs"),
        (m.MapBlock(0, (-1, 0)), "not in pairs"),
        (m.MapBlock(0, (1, 2)), "a node never named"),
    ],
)
def test_locations_that_make_no_sense_are_refused(block: m.MapBlock, problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        LocationTable().update(locations(block))


def test_nodes_are_named_in_turn() -> None:
    table = LocationTable()
    table.update(locations(m.MapBlock(0, (1, 0))))
    table.update(locations(m.MapBlock(0, (1, 2)), first_node=2, nodes=3))
    assert table.nodes == [A, B, C]
    with pytest.raises(ProtocolError, match="nodes from number 2 on came after 3"):
        table.update(locations(first_node=2, nodes=3))


@pytest.mark.parametrize("spans", [(0, 4), (0, 1), (1, 2), (2, 3), (4, 5), (7, 8)])
def test_a_reduce_whose_inputs_are_not_known_is_refused(spans: tuple[int, ...]) -> None:
    table = LocationTable()
    table.update(locations(m.MapBlock(0, (2, 0)), m.MapBlock(3, (1, 0)), m.MapBlock(4, (3, 1))))
    assert len(table.fill(m.ReduceTask(0, (0, 2, 3, 7))).inputs) == 3
    assert table.fill(m.ReduceTask(0)).inputs == ()
    with pytest.raises(ProtocolError, match="this node was not told where that of map"):
        table.fill(m.ReduceTask(0, spans))


def test_map_attempts_are_told_from_other_ids() -> None:
    assert map_attempt("j000000000001-m000012.3") == (JOB, 12, 3)
    for text in ("", "j000000000001-r000012.3", "j000000000001-m12.3", "j000000000001-m000012", "x"):
        assert map_attempt(text) is None
    assert job_of(AttemptId("j000000000001-plan.0")) == JOB
