"""What a person reads when their own code is wrong: their frames, the record, its place, how to repeat."""

from __future__ import annotations

import datetime as dt
import json
import operator
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import cortex
from cortex.api import FunctionJob
from cortex.class_spec import build_spec
from cortex.errors import (
    ColumnError,
    CortexError,
    DivisionByZero,
    InputError,
    KeyTypeError,
    UserCodeError,
    UserMemoryError,
    ValueTypeError,
)
from cortex.kernels.casts import python_list
from cortex.tasks.executor import task_error
from cortex.tasks.table_emitters import TableToPart
from cortex.tasks.user_errors import user_frames
from cortex.wire.messages import PlanTask
from tests.one_process import run_tasks

LINES = "one\ntwo\nthree\nfour\n"


class Lines(cortex.MapReduceJob):
    input_format = "text"
    combine: Any = sum

    def map(self, record: str) -> Any:
        yield record, 1


def failure(job: cortex.MapReduceJob, folder: Path, name: str = "in.txt", text: str = LINES) -> CortexError:
    (folder / name).write_text(text)
    job.input = str(folder / name)
    job.output = job.output or str(folder / "out")
    with pytest.raises(CortexError) as caught:
        run_tasks(build_spec(job, "jobs.py:Job"), job)
    return caught.value


class ReturnsOnePair(Lines):
    def map(self, record: str) -> Any:
        return record, 1


class ReturnsANumber(Lines):
    def map(self, record: str) -> Any:
        return 5 if record == "three" else None


class YieldsNoPairs(Lines):
    def map(self, record: str) -> Any:
        yield (record, 1) if record != "three" else record


class DictKey(Lines):
    def map(self, record: str) -> Any:
        yield ({} if record == "three" else record), 1


class TwoParameters(Lines):
    def map(self, record: str, more: int) -> Any:  # type: ignore[override]
        yield record, more


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    ("job", "kind", "message", "offset"),
    [
        (ReturnsOnePair, ValueTypeError, "returned one pair, ('one', 1)", "0"),
        (ReturnsANumber, ValueTypeError, "returned 5, where pairs", "8"),
        (YieldsNoPairs, ValueTypeError, "yielded 'three', which is no", "8"),
        (DictKey, KeyTypeError, "type dict", "8"),
        (TwoParameters, ValueTypeError, "missing a required argument: 'more'", "0"),
    ],
)
def test_bad_pairs_are_placed(
    tmp_path: Path, job: type[Lines], kind: type[CortexError], message: str, offset: str, grouped: bool
) -> None:
    made = job()
    if grouped:
        made.combine = None
    error = failure(made, tmp_path)
    assert type(error) is kind
    assert message in error.message
    assert error.details["offset"] == offset
    assert error.details["record"] in ("'one'", "'three'")
    assert error.cure


class Text(Lines):
    def map(self, record: str) -> Any:
        yield record, "x"


class LateText(Lines):
    def map(self, record: str) -> Any:
        yield ("many" if record.isdigit() else record), (1 if record != "700" else "x")


@pytest.mark.parametrize("job", [Text, LateText])
def test_sum_of_text_is_not_a_bug(tmp_path: Path, job: type[Lines]) -> None:
    error = failure(job(), tmp_path, text=LINES + "\n".join(map(str, range(1000))))
    assert isinstance(error, ValueTypeError)
    assert "combine" in error.message
    assert error.details["file"].endswith("in.txt")
    assert "yield" in error.cure


def test_an_operator_that_cannot_fold(tmp_path: Path) -> None:
    for key in ("k", 1):

        class Adds(Lines):
            combine = operator.add

            def map(self, record: str, key: Any = key) -> Any:
                yield key, (record if record == "three" else 1)

        error = failure(Adds(), tmp_path)
        assert isinstance(error, ValueTypeError), error
        assert "cannot take" in error.message


def test_sum_adds_whatever_python_adds(tmp_path: Path) -> None:
    class Lists(Lines):
        def map(self, record: str) -> Any:
            yield "all", [record]

    (tmp_path / "in.txt").write_text(LINES)
    job = Lists(str(tmp_path / "in.txt"), str(tmp_path / "out"))
    assert b'""one"",""two"",""three"",""four""' in run_tasks(build_spec(job, "j"), job).data


class Exits(Lines):
    def map(self, record: str) -> Any:
        sys.exit("enough")


class Interrupts(Lines):
    def map(self, record: str) -> Any:
        raise KeyboardInterrupt


@pytest.mark.parametrize("job", [Exits, Interrupts])
def test_leaving_the_program_in_map(tmp_path: Path, job: type[Lines]) -> None:
    error = failure(job(), tmp_path)
    assert isinstance(error, UserCodeError)
    assert error.details["record"] == "'one'"
    assert f"cortex{os.sep}tasks" not in str(error)
    assert "return from map" in error.cure


class Combines(Lines):
    def combine(self, key: Any, values: Any) -> Any:  # type: ignore[override]
        raise OSError("broken")


class Folds(Lines):
    @staticmethod
    def combine(first: int, second: int) -> int:
        raise OSError("broken")

    def map(self, record: str) -> Any:
        yield "k", 1


class Partitions(Lines):
    combine = None

    def partition(self, key: Any, n: int) -> int:
        raise OSError("broken")


@pytest.mark.parametrize(
    ("job", "function", "arguments"),
    [
        (Combines, "combine", "key="),
        (Folds, "combine", "first=1, second=1"),
        (Partitions, "partition", "key="),
    ],
)
def test_the_function_that_raised_is_named(
    tmp_path: Path, job: type[Lines], function: str, arguments: str
) -> None:
    error = failure(job(), tmp_path)
    assert error.message.startswith(f"{function} raised OSError at test_user_errors.py:")
    assert arguments in error.details["arguments"]
    assert "record" not in error.details


class Stops(Lines):
    combine = None

    def reduce(self, key: Any, values: Any) -> Any:
        yield key, [next(values), next(values)]


def test_a_stop_iteration_is_the_users(tmp_path: Path) -> None:
    error = failure(Stops(), tmp_path)
    assert isinstance(error, UserCodeError)
    assert error.message.startswith("reduce raised StopIteration at test_user_errors.py:")
    assert "next(values), next(values)" in error.details["traceback"]


class Setup(Lines):
    def setup(self) -> None:
        raise OSError("no model")


def test_setup_has_no_record(tmp_path: Path) -> None:
    error = failure(Setup(), tmp_path)
    assert error.message.startswith("setup raised OSError")
    assert "record" not in error.details
    assert error.details["repeat"] == "python -c 'from jobs import Job; Job().setup()'"


def test_the_line_to_repeat_a_function_of_a_job_file(tmp_path: Path) -> None:
    (tmp_path / "functions.py").write_text(
        "def words(line):\n    yield from [(line, 1 // len(line))]\n"
        "def total(key, values):\n    return [(key, sum(values) // 0)]\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        import functions  # type: ignore[import-not-found]

        for made in (
            FunctionJob(map=functions.words),
            FunctionJob(map=functions.words, reduce=functions.total),
        ):
            made.input_format = "text"
            error = failure(made, tmp_path, text="a\n\n" if made.reduce.__name__ != "total" else "a\n")
            repeated = subprocess.run(
                error.details["repeat"].replace("python -c", f"{sys.executable} -c"),
                shell=True,
                capture_output=True,
                text=True,
            )
            assert "ZeroDivisionError" in repeated.stderr, repeated
    finally:
        sys.path.remove(str(tmp_path))
        del sys.modules["functions"]


@pytest.mark.parametrize("where", ["", "a != 1"])
def test_an_expression_that_fails_names_the_row(tmp_path: Path, where: str) -> None:
    class Declared(cortex.MapReduceJob):
        reducers = 0

    error = failure(
        Declared(where=where, select={"b": "7 // (a - 3)"}), tmp_path, "in.csv", "a\n1\n2\n3\n4\n"
    )
    assert isinstance(error, DivisionByZero)
    assert list(error.details)[:3] == ["file", "offset", "line"]
    assert (error.details["offset"], error.details["line"]) == ("6", "3")


class Rows(cortex.MapReduceJob):
    def map(self, record: Any) -> Any:
        yield record.k, str(record.t)


@pytest.mark.parametrize(
    ("column", "said", "cure"),
    [
        (
            pa.array([5, 2**55], pa.timestamp("ms")),
            "beyond what Python's dates",
            "columns: {t: string}, or int64",
        ),
        (pa.array([5, 2**30], pa.int32()).view(pa.date32()), "beyond what Python's dates", "or int32"),
        (pa.array([5000, 2001], pa.time64("ns")), "has nanoseconds", "columns: {t: string}"),
        (pa.array([5000, 2001], pa.timestamp("ns", "UTC")), "has nanoseconds", "columns: {t: string}"),
        (pa.array([[5], [2**55]], pa.list_(pa.timestamp("ms"))), "Python", "map_batch"),
    ],
    ids=str,
)
def test_a_value_that_python_has_not_is_the_inputs_fault(
    tmp_path: Path, column: pa.Array, said: str, cure: str
) -> None:
    pq.write_table(pa.table({"k": [1, 2], "t": column}), tmp_path / "in.parquet")
    job = Rows(str(tmp_path / "in.parquet"), str(tmp_path / "out"))
    with pytest.raises(InputError, match="column 't' has no Python value") as caught:
        run_tasks(build_spec(job, "j"), job)
    assert said in caught.value.message
    assert cure in caught.value.cure
    assert caught.value.details == {"file": str(tmp_path / "in.parquet"), "row": "row 1 of the file"}


def test_times_of_whole_microseconds_are_pythons_own_whether_pandas_is_there_or_not() -> None:
    pytest.importorskip("pandas")
    day = dt.datetime(2020, 1, 1, 0, 0, 0, 500000)
    for kind, wanted in (
        (pa.timestamp("ns"), day),
        (pa.timestamp("ns", "UTC"), day.replace(tzinfo=dt.UTC)),
        (pa.time64("ns"), day.time()),
        (pa.duration("ns"), dt.timedelta(milliseconds=5)),
    ):
        (found, none) = python_list(pa.array([wanted, None], kind))
        assert (type(found), found, none) == (type(wanted), wanted, None)
    with pytest.raises(pa.ArrowInvalid, match="has nanoseconds, which Python's times have not"):
        python_list(pa.array([1], pa.timestamp("ns")))


def test_an_exception_of_pyarrow_in_a_declared_job_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, batch: Any) -> None:
        pa.array([1.5]).cast(pa.int64())

    monkeypatch.setattr(TableToPart, "batch", refuse)
    (tmp_path / "in.csv").write_text("a\n1\n")
    job = cortex.MapReduceJob(str(tmp_path / "in.csv"), str(tmp_path / "out"), where="a > 0")
    with pytest.raises(pa.ArrowInvalid, match="truncated"):
        run_tasks(build_spec(job, "j"), job)


def test_memory_errors_show_the_users_frames() -> None:
    try:
        bytearray(1 << 62)
    except MemoryError as caught:
        error = task_error(PlanTask(), 1, 1, caught)
    assert "bytearray(1 << 62)" in error.details["traceback"]


class Returns(cortex.MapReduceJob):
    key = "k"
    made: Any = None

    def map_batch(self, batch: pa.RecordBatch) -> Any:
        return self.made


class ReturnsMapOnly(Returns):
    key = ()
    reducers = 0


class ReturnsLater(Returns):
    def map_batch(self, batch: pa.RecordBatch) -> Any:
        return {"k": [1]}

    def reduce_batch(self, batches: Any) -> Any:
        yield self.made


TWICE = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], ["k", "v", "v"])
RUN_ENDS = pa.RunEndEncodedArray.from_arrays([1], ["a"])


@pytest.mark.parametrize("job", [Returns, ReturnsMapOnly, ReturnsLater])
@pytest.mark.parametrize(
    ("made", "kind", "message"),
    [
        (TWICE, ColumnError, "two columns named 'v'"),
        (pa.Table.from_batches([TWICE]), ColumnError, "two columns named 'v'"),
        (pa.record_batch({"k": [1], "v": RUN_ENDS}), ColumnError, "column 'v' is of type run_end_encoded"),
        ({"k": [1, 2], "v": [1]}, ValueTypeError, "returned a dict that makes no table"),
        ({"k": [1, "x"]}, ValueTypeError, "returned a dict that makes no table"),
        ({"k": 1}, ValueTypeError, "returned a dict that makes no table"),
        (1, ValueTypeError, "returned int, which is no table"),
        (iter([{"k": [1]}, None, "ab"]), ValueTypeError, "returned str, which is no table"),
    ],
)
def test_tables_that_cannot_be(
    tmp_path: Path, job: type[Returns], made: Any, kind: type[CortexError], message: str
) -> None:
    instance = job()
    instance.made = made
    error = failure(instance, tmp_path, "in.csv", "k,v\n1,2\n")
    assert type(error) is kind
    assert message in error.message
    assert error.cure


OFFSETS = pa.array([0, 2, None, 3], pa.int32())
VIEWS = pa.array(["a", None, "b"], pa.string_view())
DICTIONARY = VIEWS.cast(pa.string()).dictionary_encode()


@pytest.mark.parametrize("job", [Returns, ReturnsMapOnly, ReturnsLater])
@pytest.mark.parametrize(
    "column",
    [
        DICTIONARY,
        VIEWS,
        pa.array([b"a", None, b"b"], pa.binary_view()),
        pa.ListArray.from_arrays(OFFSETS, DICTIONARY),
        pa.ListArray.from_arrays(OFFSETS, VIEWS),
        pa.FixedSizeListArray.from_arrays(VIEWS, 1),
        pa.StructArray.from_arrays([VIEWS, DICTIONARY, pa.array([1, 2, 3])], names=["x", "y", "z"]),
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 1]), pa.array([{"a": 1}, {"a": 2}])),
        pa.array([[[1, 2], []], None, [[3]]]),
    ],
    ids=lambda column: str(column.type),
)
def test_dictionaries_and_views_become_plain_however_deep(
    tmp_path: Path, job: type[Returns], column: pa.Array
) -> None:
    instance = job(output=str(tmp_path / "out"), output_format="jsonl")
    (tmp_path / "in.csv").write_text("k,v\n1,2\n")
    instance.input = str(tmp_path / "in.csv")
    instance.made = pa.RecordBatch.from_arrays([pa.array([1] * len(column)), column], ["k", "v"])
    outcome = run_tasks(build_spec(instance), instance)
    rows = [json.loads(line)["v"] for line in outcome.data.splitlines()]
    assert rows == [v.decode() if isinstance(v, bytes) else v for v in column.to_pylist()]


def test_an_error_in_a_library_that_cortex_calls_is_not_the_users() -> None:
    def caught(call: Any, *arguments: Any) -> list[str]:
        try:
            call(*arguments)
        except Exception as error:
            error.__traceback__ = error.__traceback__.tb_next if error.__traceback__ else None
            return [os.path.basename(frame.filename) for frame in user_frames(error)]
        raise AssertionError

    assert caught(pc.add, 1, "x") == []
    assert caught(pa.RecordBatch.from_pydict, {"a": [1, "x"]}) == []
    assert caught(np.average, [1], 0, [0]) == []
    assert caught(lambda: pc.add(1, "x"))[0] == "test_user_errors.py"
    assert caught(lambda: np.average([1], weights=[0]))[0] == "test_user_errors.py"


def test_a_memory_error_that_was_named_keeps_its_cause_and_its_cure() -> None:
    try:
        raise InputError("too large", details={"file": "x"}, cure="smaller ones") from MemoryError()
    except InputError as caught:
        error = task_error(PlanTask(), 1, 1, caught)
    assert isinstance(error, UserMemoryError)
    assert (error.details["cause"], error.details["file"]) == ("too large", "x")
    assert error.cure == "smaller ones"
