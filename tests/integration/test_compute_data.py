"""What goes into calls and comes out of them, in an executor that is spoken to as its node does."""

from __future__ import annotations

import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from cortex.limits import MIB
from cortex.tasks.attached_files import new_name, write_attached
from cortex.tasks.cell_pickles import dump_list, load_exception
from cortex.wire.framing import BlockingConnection
from cortex.wire.messages import (
    Attached,
    CellsRun,
    FunctionCode,
    InputBytes,
    InputHello,
    ReadInput,
    ToInputDoor,
)
from tests.integration.executor_side import JOB, ComputeSide, function_code


def test_a_result_that_cannot_be_pickled_names_itself_alone(side: ComputeSide) -> None:
    def locked(x: int) -> Any:
        return threading.Lock() if x in (3, 4, 9) else x

    side.send(side.cell(side.function(locked), list(range(10)), first=20))
    (message,) = [side.receive(CellsRun)]
    values: list[Any] = []
    failed = {}
    at = 0
    for done in message.results:
        assert done.start == at
        at = done.stop
        failed |= {each.call: each for each in done.failed}
        values += side.values(done) if done.data else []
    assert at == 10
    assert values == [0, 1, 2, 5, 6, 7, 8]
    assert sorted(failed) == [3, 4, 9]
    assert "what locked returned for call 23, a lock, cannot be pickled" in failed[3].error.message


def test_a_result_whose_pickling_ends_the_interpreter_fails_alone(side: ComputeSide) -> None:
    def gives(x: int) -> Any:
        class Leaves:
            def __reduce__(self) -> Any:
                sys.exit(4)

        return Leaves() if x == 1 else x

    side.send(side.cell(side.function(gives), [0, 1, 2]))
    first, second, third = side.receive(CellsRun).results
    assert (side.values(first), side.values(third)) == ([0], [2])
    error = load_exception(second.failed[0])
    assert isinstance(error, SystemExit)
    assert error.code == 4


def test_arguments_that_cannot_be_unpickled_fail_and_the_next_cell_runs(side: ComputeSide) -> None:
    f = side.function(lambda x: x)
    bad = cloudpickle.dumps([_Bomb()])
    side.send(side.cell(f, [1], data=bad, first=5), side.cell(f, [2]))
    failed = side.done().failed[0]
    assert "the argument of call 5 of <lambda> cannot be unpickled" in failed.error.message
    assert "boom" in failed.error.message
    assert side.values(side.done()) == [2]
    side.send(side.cell(f, [1, 2, 3], data=b"\x80\x05garbage"))
    done = side.done()
    assert [each.call for each in done.failed] == [0, 1, 2]
    assert "the arguments of 3 calls, one of them" in done.failed[0].error.message


class _Bomb:
    def __reduce__(self) -> Any:
        return eval, ("(_ for _ in ()).throw(ValueError('boom'))",)


def test_a_function_that_cannot_be_loaded_says_so_for_each_cell(side: ComputeSide) -> None:
    code = function_code(lambda x: x)
    bad = FunctionCode(JOB, "0" * 32, "broken", code.code[:-20] + b"\x00" * 20)
    other = FunctionCode(JOB, "1" * 32, "missing", function_code(_Importing()).code)
    side.link.send(bad)
    side.link.send(other)
    side.send(side.cell("0" * 32, [1]), side.cell("1" * 32, [1]), side.cell("1" * 32, [1]))
    side.send(side.cell("f" * 32, [1]))
    assert "broken" in side.done().failed[0].error.message
    for _ in range(2):
        error = side.done().failed[0].error
        assert "missing cannot be loaded in an executor" in error.message
        assert "no_such_module_anywhere" in error.message
    assert "came before its function" in side.done().failed[0].error.message


class _Importing:
    def __call__(self) -> None: ...
    def __reduce__(self) -> Any:
        return __import__, ("no_such_module_anywhere",)


def test_modules_travel_and_another_edition_replaces_the_first(side: ComputeSide) -> None:
    def uses(x: int) -> int:
        import helper_of_mine.inner

        return int(helper_of_mine.inner.answer() + x)

    for answer in (40, 50):
        modules = {
            "helper_of_mine/__init__.py": b"",
            "helper_of_mine/inner.py": f"def answer(): return {answer}".encode(),
        }
        side.send(side.cell(side.function(uses, modules), [2]))
        assert side.values(side.done()) == [answer + 2]


def test_classes_of_main_go_and_come_back_as_themselves(side: ComputeSide) -> None:
    Point = type("Point", (), {"__module__": "__main__", "__init__": lambda self, x: setattr(self, "x", x)})
    cell = side.cell(side.function(lambda p: p), [0], data=cloudpickle.dumps([Point(3)]))
    side.send(cell)
    done = side.done()
    (value,) = side.values(done)
    assert type(value) is Point
    assert value.x == 3


def test_large_buffers_travel_beside_frames_and_are_writable(side: ComputeSide) -> None:
    array = np.arange(3 * MIB, dtype=np.uint8)
    small = np.arange(10.0)
    pickled = dump_list([(array, small)])
    name = new_name("arguments")
    write_attached(str(side.folder / name), pickled)

    def doubles(both: Any) -> Any:
        large, small = both
        large[0] = 7  # of the mapping alone
        small[0] = 5.0
        return large, small, large.ctypes.data % 64

    f = side.function(doubles)
    side.send(side.cell(f, [0], data=b"\x00", attached=Attached(name, pickled.sizes)))
    done = side.done()
    assert done.attached is not None
    assert done.data == b""
    assert not done.buffers
    (result,) = side.values(done)
    assert result[0][0] == 7
    assert np.array_equal(result[0][1:], array[1:])
    assert result[1].tolist() == [5.0, *range(1, 10)]
    assert result[2] == 0
    result[0][1] = 9  # writable here, too
    assert (side.folder / name).read_bytes()[-(3 * MIB) :][0] == 0  # the file is as it was


def test_small_buffers_come_in_the_frame_and_are_writable(side: ComputeSide) -> None:
    done = side.call(lambda n: np.zeros(n), [100, 20_000])
    assert done.attached is None
    assert [len(each) for each in done.buffers] == [160_000]
    small, large = side.values(done)
    small[0] = large[0] = 1.0


def test_an_attachment_that_is_gone_is_a_typed_error(side: ComputeSide) -> None:
    f = side.function(lambda x: x)
    side.send(side.cell(f, [0], data=b"\x00", attached=Attached("nowhere", (10,))))
    assert side.done().failed[0].error.code == "input-lost"


def test_an_argument_larger_than_the_slots_memory_is_mapped(tmp_path: Path) -> None:
    array = np.ones(300 * MIB, dtype=np.uint8)
    pickled = dump_list([array])
    side = ComputeSide(tmp_path, 200 * MIB)
    try:
        name = new_name("arguments")
        write_attached(str(tmp_path / name), pickled)
        f = side.function(lambda a: int(a[::4096].sum()))
        for _ in range(3):  # what a mapping was allowed is taken back with it
            side.send(side.cell(f, [0], data=b"\x00", attached=Attached(name, pickled.sizes)))
            done = side.done()
            assert not done.failed, done.failed[0].error
            assert side.values(done) == [300 * MIB // 4096]
        too_much = side.call(lambda mb: len(bytearray(mb << 20)), [400])
        assert too_much.failed[0].error.code == "user-memory"
    finally:
        side.close()


class InputDoor:
    """A node's door for what only the client has: one file in memory."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._data = data
        self.reads: list[tuple[int, int]] = []
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(str(path))
        self._door.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        peer, _ = self._door.accept()
        with BlockingConnection[ToInputDoor](peer, ToInputDoor) as link:
            assert link.receive(10) == InputHello(JOB)
            while isinstance(read := link.receive(), ReadInput):
                assert (read.job, read.file) == (JOB, 17)
                self.reads.append((read.offset, read.length))
                link.send(InputBytes(read.read, self._data[read.offset : read.offset + read.length]))

    def close(self) -> None:
        self._door.close()


@pytest.mark.parametrize("memory_bytes", [400 * MIB, 100 * MIB], ids=["in memory", "by way of a file"])
def test_on_a_cluster_arguments_are_read_from_the_client(tmp_path: Path, memory_bytes: int) -> None:
    array = np.arange(5 * MIB)  # 40 MB
    pickled = dump_list([(array, 5)])
    written = tmp_path / "written"
    write_attached(str(written), pickled)
    door = InputDoor(tmp_path / "door", written.read_bytes())
    side = ComputeSide(tmp_path, memory_bytes, input_socket=str(tmp_path / "door"))
    try:

        def check(both: Any) -> list[Any]:
            large, number = both
            large[0] = 1
            return [int(large.sum()), number]

        f = side.function(check)
        attached = Attached("", pickled.sizes, 17)
        side.send(side.cell(f, [0], data=b"\x00", attached=attached))
        assert side.values(side.done()) == [[int(array.sum()) + 1, 5]]
        assert sum(length for _, length in door.reads) == written.stat().st_size
        left = {each.name for each in tmp_path.iterdir() if not each.name.startswith("modules")}
        assert left == {"written", "door", "s", "stderr"}
        short = Attached("", (written.stat().st_size + 100,), 17)
        side.send(side.cell(f, [0], data=b"\x00", attached=short))
        assert side.done().failed[0].error.code == "input-lost"
    finally:
        side.close()
        door.close()


def test_a_deep_result_of_a_stuck_cell(hasty: ComputeSide) -> None:
    """The watch thread pickles on a stack of its own."""

    def nests(depth: float) -> Any:
        found: Any = []
        for _ in range(int(depth)):
            found = [found]
        time.sleep(depth % 1)
        return found

    cell = hasty.cell(hasty.function(nests), [300, 5000, 1.5])
    hasty.send(cell)
    message = hasty.receive(CellsRun)
    assert [(each.start, each.stop, len(each.failed)) for each in message.results] == [(0, 1, 0), (1, 2, 1)]
    assert "excessively deep recursion" in message.results[1].failed[0].error.message
    assert hasty.values(hasty.done()) == [[[]]]
