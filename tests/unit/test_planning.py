"""The input plan: which files, which columns and types, where the splits are."""

from __future__ import annotations

import gzip
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cortex import limits
from cortex.errors import ColumnError, InputError, UsageError
from cortex.formats import planning
from cortex.formats.planning import plan_inputs
from cortex.formats.readers import open_reader
from cortex.job.plan import OUT, UNKNOWN, InputPlan
from cortex.job.spec import CsvDialect, InputSpec

Put = Callable[[str, bytes], str]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def write(name: str, data: bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return str(path)

    return write


def _plan(*paths: str, used: list[str] | None = None, size: int = 0, **spec: object) -> InputPlan:
    return plan_inputs(InputSpec(paths=paths, **spec), used_columns=used, split_bytes=size)  # type: ignore[arg-type]


def _names(plan: InputPlan) -> list[str]:
    return [os.path.basename(file.path) for file in plan.files]


# --- which files ---


def test_folders_are_read_through_without_hidden_names(put: Put, tmp_path: Path) -> None:
    for name in ("d/b.txt", "d/a.txt", "d/sub/c.txt", "d/_SUCCESS", "d/.x", "d/_t/x.txt", "d/.git/x.txt"):
        put(name, b"x\n")
    assert _names(_plan(str(tmp_path / "d"))) == ["a.txt", "b.txt", "c.txt"]


def test_linked_folders_are_followed_once(put: Put, tmp_path: Path) -> None:
    for name in ("d/a.txt", "d/sub/b.txt", "elsewhere/c.txt", "elsewhere/deep/d.txt"):
        put(name, b"x\n")
    os.symlink(tmp_path / "elsewhere", tmp_path / "d" / "link")
    os.symlink(tmp_path / "d", tmp_path / "d" / "sub" / "back")
    os.symlink(tmp_path / "d" / "sub", tmp_path / "d" / "again")
    plan = _plan(str(tmp_path / "d"))
    assert _names(plan) == ["a.txt", "b.txt", "c.txt", "d.txt"]
    assert plan.files[1].path == str(tmp_path / "d" / "again" / "b.txt")  # the first name that leads there


def test_globs_are_sorted_and_a_file_reached_twice_is_read_once(put: Put, tmp_path: Path) -> None:
    first = put("b.txt", b"x\n")
    put("a.txt", b"x\n")
    put("_SUCCESS", b"")
    os.symlink(first, tmp_path / "z.txt")
    assert _names(_plan(first, str(tmp_path / "*"))) == ["b.txt", "a.txt"]


def test_a_glob_for_some_names_takes_what_a_shell_would(put: Put, tmp_path: Path) -> None:
    for name in ("a.txt", "_b.txt", ".c.txt", "d/_e.txt"):
        put(name, b"x\n")
    assert _names(_plan(str(tmp_path / "*.txt"))) == ["_b.txt", "a.txt"]
    assert _names(_plan(str(tmp_path / "**" / "*.txt"))) == ["_b.txt", "a.txt", "_e.txt"]
    assert _names(_plan(str(tmp_path / "**"))) == ["a.txt"]


def test_a_glob_skips_what_is_below_hidden_folders(put: Put, tmp_path: Path) -> None:
    for name in ("d/_tmp/a.txt", "d/_tmp/sub/b.txt", "d/.git/c.txt", "d/ok/d.txt", "d/_SUCCESS", "_e/f.txt"):
        put(name, b"x\n")
    for pattern in ("d/**", "d/**/*", "d/**/*.txt", "d/*", "d/*/*.txt", "**/ok/*", "d/**/ok/**"):
        assert _names(_plan(str(tmp_path / pattern))) == ["d.txt"]
    for pattern, names in (
        ("d/_tmp/**", ["a.txt", "b.txt"]),
        ("d/**/_tmp/*.txt", ["a.txt"]),
        ("d/_*/a.txt", ["a.txt"]),
        ("_e/*", ["f.txt"]),
    ):
        assert _names(_plan(str(tmp_path / pattern))) == names


def test_a_name_with_glob_characters_is_that_file_when_it_exists(put: Put) -> None:
    assert _names(_plan(put("a[1].txt", b"x\n"))) == ["a[1].txt"]


@pytest.mark.parametrize("name", ["none*.csv", "none.csv", "empty"])
def test_what_matches_nothing_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=name.replace("*", r"\*")):
        _plan(str(tmp_path / name))


def test_a_pipe_is_no_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.csv")
    with pytest.raises(InputError, match="no regular file"):
        _plan(str(tmp_path / "p.csv"))


def test_formats_come_from_endings(put: Put, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.PQ")
    names = {"x.csv": "csv", "x.tsv": "tsv", "x.log": "text", "x.txt": "text", "x.csv.gz": "csv", "x": "text"}
    for name, want in names.items():
        data = gzip.compress(b"a\n1\n") if name.endswith("gz") else b"a\n1\n"
        assert _plan(put(name, data)).files[0].format == want
    assert _plan(str(tmp_path / "x.PQ")).files[0].format == "parquet"
    assert _plan(put("y.txt", b"a\n1\n"), format="csv").files[0].format == "csv"


def test_tsv_has_tabs(put: Put) -> None:
    plan = _plan(put("x.tsv", b"a\tb,c\n1\tx\n"))
    assert plan.columns == (("a", "int64"), ("b,c", "string"))


def test_a_delimiter_that_was_said_stands_and_one_that_was_not_is_the_formats(put: Put) -> None:
    tabs, commas = put("x.tsv", b"a\tb\n1\t2\n"), put("y.csv", b"a,b\n3,4\n")
    plan = _plan(tabs, commas, dialect=CsvDialect(delimiter="", null_values=("NA",)))
    assert plan.columns == (("a", "int64"), ("b", "int64"))
    plan = _plan(put("z.tsv", b"a,b\n1,2\n"), dialect=CsvDialect(delimiter=","))
    assert plan.columns == (("a", "int64"), ("b", "int64"))


@pytest.mark.parametrize(
    "dialect", [CsvDialect(delimiter=";;"), CsvDialect(delimiter="é"), CsvDialect(quote=",")]
)
def test_a_dialect_that_cannot_be_is_refused(put: Put, dialect: CsvDialect) -> None:
    with pytest.raises(InputError):
        _plan(put("x.csv", b"a\n1\n"), dialect=dialect)


# --- columns and types ---


def test_types_are_inferred_from_the_sample(put: Put) -> None:
    data = b"i,f,b,d,s,none,big\n1,2.5,true,2020-01-01,x,,1\n2,1e3,false,2020-01-02,5,,99999999999999999999\n"
    plan = _plan(put("x.csv", data))
    assert dict(plan.columns) == {
        "i": "int64",
        "f": "float64",
        "b": "bool",
        "d": "date32",
        "s": "string",
        "none": "string",
        "big": "string",
    }
    assert any("too large for int64" in note for note in plan.notes)


def test_numbers_that_pyarrow_reads_as_others_are_not_inferred(put: Put) -> None:
    data = b'h,i,plus,long,q,n\n0x10,1,+5,+9007199254740993,"",NA\n7,2,3,1,99999999999999999999,"2"\n'
    plan = _plan(put("x.csv", data), dialect=CsvDialect(null_values=("", "NA")))
    assert dict(plan.columns) == {
        "h": "string",
        "i": "int64",
        "plus": "float64",
        "long": "string",
        "q": "string",
        "n": "int64",
    }
    assert len(plan.notes) == 2


def test_what_stands_behind_the_sample_does_not_change_a_type(put: Put) -> None:
    data = b"a\n" + b"1\n" * limits.INFER_BYTES + b"x\n"
    assert _plan(put("x.csv", data)).columns == (("a", "int64"),)


def test_the_sample_grows_for_one_long_record(put: Put) -> None:
    data = b'a,b\n"' + b"x" * (limits.INFER_BYTES + 10) + b'",7\n' + b"y,8\n" * 10
    assert _plan(put("x.csv", data)).columns == (("a", "string"), ("b", "int64"))


def test_declared_types_stand_and_the_rest_is_inferred(put: Put) -> None:
    plan = _plan(put("x.csv", b"a,b\n1,2\n"), columns={"a": "str"})
    assert plan.columns == (("a", "string"), ("b", "int64"))


def test_ints_and_floats_of_several_files_are_float_and_it_is_said(put: Put) -> None:
    plan = _plan(put("a.csv", b"x\n1\n"), put("b.csv", b"x\n1.5\n"), put("c.csv", b"x\n\n"))
    assert plan.columns == (("x", "float64"),)
    assert len(plan.notes) == 1
    assert "read as float64" in plan.notes[0]


def test_conflicting_types_name_both_files_and_the_cure(put: Put) -> None:
    with pytest.raises(InputError) as caught:
        _plan(put("a.csv", b"x\n1\n"), put("b.csv", b"x\nword\n"))
    assert caught.value.details["file"].endswith("a.csv")
    assert caught.value.details["other file"].endswith("b.csv")
    assert caught.value.cure.endswith("columns: {x: string}")


def test_columns_are_matched_by_name(put: Put) -> None:
    plan = _plan(put("a.csv", b"x,y\n1,a\n"), put("b.csv", b"y,x\nb,2\n"))
    assert plan.columns == (("x", "int64"), ("y", "string"))
    assert plan.files[1].columns == (("y", "string"), ("x", "int64"))


def test_a_column_missing_in_one_file_is_an_error_that_names_it(put: Put) -> None:
    a, b = put("a.csv", b"x,yy\n1,a\n"), put("b.csv", b"x\n2\n")
    for order in ((a, b), (b, a)):
        with pytest.raises(ColumnError, match="'yy'") as caught:
            _plan(*order)
        assert caught.value.details["file"] == b
    assert _plan(a, b, used=["x"]).columns == (("x", "int64"),)


@pytest.mark.parametrize("more", [{"used": ["statoin"]}, {"columns": {"statoin": "string"}}])
def test_an_unknown_column_is_an_error_with_the_nearest_name(put: Put, more: dict[str, object]) -> None:
    with pytest.raises(ColumnError) as caught:
        _plan(put("a.csv", b"station,temp\nx,1\n"), **more)  # type: ignore[arg-type]
    assert caught.value.cure == "did you mean 'station'?"
    assert caught.value.details["file"].endswith("a.csv")


def test_a_type_that_csv_cannot_give_is_refused_in_the_plan(put: Put) -> None:
    with pytest.raises(ColumnError, match="float16"):
        _plan(put("a.csv", b"x\n1\n"), columns={"x": "float16"})


def test_a_job_that_only_counts_reads_one_column_that_cannot_fail(put: Put) -> None:
    assert _plan(put("a.csv", b"x,y\n1,2\n"), used=[]).columns == (("x", "binary"),)


def test_counting_parquet_reads_its_narrowest_column(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"s": ["a"], "i": [1], "b": [True]}), path)
    assert _plan(str(path), used=[]).columns == (("b", "bool"),)


def test_headers_may_be_quoted_hold_newlines_and_follow_a_mark_and_blank_lines(put: Put) -> None:
    plan = _plan(put("x.csv", b'\xef\xbb\xbf\r\n\n"a\nb","c""d"\r\n1,2\r\n'))
    assert [name for name, _ in plan.columns] == ["a\nb", 'c"d']
    assert plan.splits[0].offset == 20
    assert plan.splits[0].length == 5


def test_a_doubled_header_name_is_an_error(put: Put) -> None:
    with pytest.raises(InputError, match="'x' more than once"):
        _plan(put("x.csv", b"x,y,x\n1,2,3\n"))


def test_files_without_a_header_have_the_declared_columns_or_numbered_ones(put: Put) -> None:
    path = put("x.csv", b"1,a\n")
    bare = CsvDialect(header=False)
    assert _plan(path, dialect=bare).columns == (("f0", "int64"), ("f1", "string"))
    named = _plan(path, dialect=bare, columns={"n": "int64", "s": "string"})
    assert named.columns == (("n", "int64"), ("s", "string"))
    assert named.splits[0].offset == 0


def test_bytes_that_are_not_utf8_are_found_with_offset_and_line(put: Put) -> None:
    with pytest.raises(InputError, match="invalid UTF-8") as caught:
        _plan(put("x.csv", b"a,b\n1,ok\n2,\xff\n"))
    assert (caught.value.details["offset"], caught.value.details["line"]) == ("9", "2,\\xff")
    assert _plan(put("x.csv", b"a,b\n1,ok\n2,\xff\n"), used=["a"]).columns == (("a", "int64"),)


def test_a_ragged_row_in_the_sample_is_found(put: Put) -> None:
    with pytest.raises(InputError, match="expected 2 columns, got 3") as caught:
        _plan(put("x.csv", b"a,b\n1,2\n1,2,3\n"))
    assert caught.value.details["offset"] == "8"


def test_text_has_one_column(put: Put) -> None:
    path = put("x.txt", b"hello\n")
    assert _plan(path).columns == (("line", "string"),)
    assert _plan(path, encoding="bytes").columns == (("line", "binary"),)
    with pytest.raises(ColumnError):
        _plan(path, used=["word"])


def test_dictionary_and_large_columns_are_read_as_plain_ones(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table({"d": pa.array(["a"]).dictionary_encode(), "l": pa.array(["a"], pa.large_string())})
    pq.write_table(table, path)
    assert _plan(str(path)).columns == (("d", "string"), ("l", "string"))


def test_a_type_no_job_can_use_fails_only_if_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"m": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), "x": [1]}), path)
    assert _plan(str(path), used=["x"]).columns == (("x", "int64"),)
    with pytest.raises(ColumnError, match="'m'"):
        _plan(str(path))


def test_a_time_zone_that_is_none_is_refused_in_the_plan(tmp_path: Path) -> None:
    path = str(tmp_path / "x.parquet")
    pq.write_table(pa.table({"t": pa.array([5], pa.timestamp("ms", "Mars/Phobos")), "x": [1]}), path)
    assert _plan(path, used=["x"]).columns == (("x", "int64"),)
    with pytest.raises(ColumnError, match="'t': there is no time zone 'Mars/Phobos'") as caught:
        _plan(path)
    assert caught.value.cure == "columns: {t: 'timestamp[ms, tz=UTC]'}"
    plan = _plan(path, columns={"t": "timestamp[ms, tz=UTC]"})
    with open_reader(plan.files[0], plan.splits[0], plan.columns, block_bytes=1000) as reader:
        assert [batch.column(0).cast(pa.int64()).to_pylist() for batch in reader] == [[5]]
    with pytest.raises(UsageError, match="no time zone"):
        _plan(path, columns={"t": "timestamp[ms, tz=Mars/Phobos]"})


# --- splits, tasks, reducers ---


def test_splits_cover_the_data_and_the_last_takes_a_sliver(put: Put) -> None:
    path = put("x.txt", b"a\n" * 54)  # 108 bytes
    assert [(s.offset, s.length) for s in _plan(path, size=50).splits] == [(0, 50), (50, 50), (100, 8)]
    assert [(s.offset, s.length) for s in _plan(path, size=100).splits] == [(0, 108)]
    assert [s.length for s in _plan(path, size=1).splits] == [1] * 108


def test_only_a_csv_file_with_quotes_and_several_splits_needs_a_scan(put: Put) -> None:
    path = put("x.csv", b"a,b\n" + b"1,2\n" * 50)
    plan = _plan(path, size=64)
    assert plan.files[0].needs_scan
    assert [s.start_state for s in plan.splits] == [OUT, UNKNOWN, UNKNOWN, UNKNOWN]
    assert not _plan(path).files[0].needs_scan
    bare = _plan(path, size=64, dialect=CsvDialect(quote=""))
    assert not bare.files[0].needs_scan
    assert {s.start_state for s in bare.splits} == {OUT}


def test_gzip_and_escapes_are_one_split_and_it_is_said(put: Put) -> None:
    plan = _plan(put("x.csv.gz", gzip.compress(b"a\n" + b"1\n" * 500)), size=10)
    assert len(plan.splits) == 1
    assert "gzip" in plan.files[0].unsplittable
    assert "gzip" in plan.notes[0]
    plan = _plan(put("y.csv", b"a,b\n" + b"1,2\n" * 50), size=10, dialect=CsvDialect(escape="\\"))
    assert len(plan.splits) == 1
    assert not plan.files[0].needs_scan
    assert "escape" in plan.notes[0]


def test_empty_files_have_no_splits(put: Put) -> None:
    plan = _plan(put("a.csv", b""), put("b.csv", b"x\n1\n"), put("c.csv", b"x\n"), put("d.csv", b"\n\n"))
    assert [s.file for s in plan.splits] == [1]
    nothing = _plan(put("e.txt", b""))
    assert (len(nothing.splits), len(nothing.tasks), nothing.reducers) == (0, 0, 1)


def test_small_files_share_a_task_in_order(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [put(f"{i:02}.txt", b"x" * size) for i, size in enumerate([10, 20, 30, 250, 60, 5, 5, 5])]
    assert [*map(list, _plan(*paths, size=100).tasks)] == [[0, 1, 2], [3], [4], [5], [6, 7, 8, 9]]
    monkeypatch.setattr(planning, "SMALL_FILES_PER_TASK_MAX", 2)
    assert [*map(list, _plan(*paths[5:], size=100).tasks)] == [[0, 1], [2]]


def test_row_groups_are_packed_to_the_split_size(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"x": pa.array(range(10_000))}), path, row_group_size=1000)
    each = _plan(str(path), size=1).splits
    assert [(s.first_unit, s.units, s.rows) for s in each] == [(i, 1, 1000) for i in range(10)]
    assert all(low.offset + low.length <= high.offset for low, high in itertools.pairwise(each))
    packed = _plan(str(path), size=each[0].length * 3 + 100).splits
    assert [(s.first_unit, s.units) for s in packed] == [(0, 3), (3, 3), (6, 3), (9, 1)]


def test_reducers_follow_the_input_bytes_alone(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put("x.txt", b"x" * 1000)
    monkeypatch.setattr(planning, "REDUCER_INPUT_BYTES", 300)
    assert _plan(path).reducers == _plan(path, size=1).reducers == 4
    monkeypatch.setattr(planning, "REDUCERS_AUTO_MAX", 3)
    assert _plan(path).reducers == 3
    for asked in (0, 7):
        plan = plan_inputs(InputSpec(paths=(path,)), used_columns=None, split_bytes=0, reducers=asked)
        assert plan.reducers == asked


def test_too_many_splits_are_refused_with_a_size_that_works(
    put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "SPLITS_MAX", 100)
    path = put("x.txt", b"x" * 1000)
    with pytest.raises(UsageError) as caught:
        _plan(path, size=5)
    assert "at least 20 bytes" in caught.value.cure
    assert len(_plan(path, size=20).splits) == 50
