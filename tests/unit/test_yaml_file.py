"""job.yaml: what it may say, and that every problem is reported at its line and column."""

from __future__ import annotations

from pathlib import Path

import pytest

from cortex.errors import JobFileError, UsageError
from cortex.job.declared import Problem, validate_declared
from cortex.job.overrides import Overrides
from cortex.job.spec import CsvDialect, JobSpec
from cortex.job.yaml_file import JobFile, load_job_file

ISSUE = """\
name: station-extremes
input: {path: measurements.csv, format: csv, columns: {station: string, temp: float64}}   # columns optional
map:
  where: temp > -90 and station != 'test'
  select: {station: station, f: temp * 9 / 5 + 32}
reduce:
  group_by: [station]
  aggregate: {coldest: min(f), mean: mean(f), hottest: max(f), readings: count()}
output: {path: out, format: csv}       # csv, tsv, jsonl, parquet, arrow, text
resources: {memory: 512MB, reducers: auto}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mod.py").write_text("def f(record): ...\n")
    return tmp_path


def load(folder: Path, text: str, overrides: Overrides | None = None) -> JobFile:
    (folder / "job.yaml").write_text(text)
    return load_job_file(str(folder / "job.yaml"), overrides, cwd="/elsewhere")


def spec(folder: Path, text: str, overrides: Overrides | None = None) -> JobSpec:
    return load(folder, text, overrides).spec


def problems(folder: Path, text: str, overrides: Overrides | None = None) -> list[str]:
    """The lines of the error, without the folder."""
    with pytest.raises(JobFileError) as caught:
        load(folder, text, overrides)
    return caught.value.message.replace(f"{folder}/", "").split("\n")


def test_the_example(folder: Path) -> None:
    found = spec(folder, ISSUE)
    assert found.name == "station-extremes"
    assert found.input.paths == (str(folder / "measurements.csv"),)
    assert found.input.format == "csv"
    assert found.input.columns == {"station": "string", "temp": "float64"}
    assert found.input.dialect is None
    assert (found.map_form, found.reduce_form) == ("declared", "aggregate")
    assert found.where == "temp > -90 and station != 'test'"
    assert found.select == {"station": "station", "f": "temp * 9 / 5 + 32"}
    assert found.group_by == ("station",)
    assert found.aggregate["readings"] == "count()"
    assert (found.output.path, found.output.format, found.output.overwrite) == (
        str(folder / "out"),
        "csv",
        False,
    )
    assert (found.resources.memory_bytes, found.resources.reducers) == (2**29, -1)


def test_options_replace_what_the_file_says(folder: Path) -> None:
    options = Overrides(
        inputs=("a.csv", "/b/*.csv"), input_format="tsv", output="o", output_format="parquet", overwrite=True,
        memory_bytes=5, slots=2, reducers=7, split_bytes=9,
    )  # fmt: skip
    found = spec(folder, ISSUE, options)
    assert found.input.paths == ("/elsewhere/a.csv", "/b/*.csv")
    assert found.input.format == "tsv"
    assert (found.output.path, found.output.format, found.output.overwrite) == (
        "/elsewhere/o",
        "parquet",
        True,
    )
    resources = found.resources
    assert (resources.memory_bytes, resources.slots, resources.reducers, resources.split_bytes) == (
        5,
        2,
        7,
        9,
    )


def test_input_may_come_from_the_command_line_alone(folder: Path) -> None:
    text = "map: {where: x > 1}\n"
    assert spec(folder, text, Overrides(inputs=("a.csv",))).input.paths == ("/elsewhere/a.csv",)
    assert problems(folder, text) == [
        "job.yaml:1:1: there is no input; add input: {path: measurements.csv}, or give --input"
    ]


def test_paths(folder: Path) -> None:
    text = "input: {path: [a.csv, ../b/*.txt, /c, '~/d']}\nmap: {where: x > 1}\n"
    paths = spec(folder, text).input.paths
    assert paths[:3] == (str(folder / "a.csv"), str(folder.parent / "b/*.txt"), "/c")
    assert not paths[3].startswith("~")


def test_dialect(folder: Path) -> None:
    text = 'map: {where: x}\ninput: {path: %s, delimiter: %s, quote: "", header: no, '
    text += 'null_values: [NA, null, ""]}'
    wanted = CsvDialect("\t", "", "", False, ("NA", "null", ""))
    assert spec(folder, text % ("a.csv", "tab")).input.dialect == wanted
    assert spec(folder, text % ("a.csv", '"\\t"')).input.dialect == wanted
    plain = "input: {path: %s, null_values: NA}\nmap: {where: x > 1}\n"
    for name in ("a.tsv", "a.csv"):  # which delimiter, each file's format decides
        assert spec(folder, plain % name).input.dialect == CsvDialect("", null_values=("NA",))


def test_names_that_yaml_would_make_something_else(folder: Path) -> None:
    text = "name: 1.10\ninput: {path: 2024}\n"
    text += "map: {select: {no: on, y: yes, 1: a, null: null_, ~: b, 'quoted': 'true'}}\n"
    found = spec(folder, text)
    assert found.name == "1.10"
    assert found.input.paths == (str(folder / "2024"),)
    assert found.select == {"no": "on", "y": "yes", "1": "a", "null": "null_", "~": "b", "quoted": "true"}


def test_code(folder: Path) -> None:
    ref = f"{folder / 'mod.py'}:f"
    job = load(folder, "job: mod.py:f\n")
    assert (job.job, job.map, job.given, job.spec.code_name) == (ref, "", frozenset({"job"}), "mod.py:f")
    base = "input: {path: a}\nmap: mod.py:f\n"
    job = load(folder, base + "reduce: mod.py:f\ncombine: max\n")
    assert (job.map, job.reduce, job.combine) == (ref, ref, "")
    assert (job.spec.map_form, job.spec.reduce_form, job.spec.combine) == ("rows", "rows", "max")
    job = load(folder, base + "combine: mod.py:f\n")
    assert (job.spec.reduce_form, job.spec.combine, job.combine) == ("fold", "binary", ref)
    assert load(folder, base).spec.reduce_form == "rows"
    assert load(folder, base + "resources: {reducers: 0}").spec.reduce_form == "none"


def test_forms_without_a_map_or_a_reduce(folder: Path) -> None:
    found = spec(folder, "input: {path: a}\nreduce: {group_by: [], aggregate: {n: count()}}\n")
    assert (found.group_by, found.reduce_form) == ((), "aggregate")
    found = spec(folder, "input: {path: a}\nmap: {where: x > 1}\nresources: {reducers: 0}\n")
    assert found.reduce_form == "none"


def test_every_problem_at_once(folder: Path) -> None:
    text = """\
nam: x
input: {path: 's3://b/x', fromat: csv, columns: {a: strng}, delimiter: ";;", header: "no"}
map:
  where: a > 1 and b = 'test'
  wher: x
  select: {a: a, f: a * 9 / , a: 3}
reduce:
  group_by: [b, f, f]
  aggregate: {f: min(ff), m: avg(f), h: max f}
output: {path: out, format: csvv, overwrite: maybe}
memory: 3
resources: {memory: lots, reducers: -3, slots: [1]}
"""
    assert [line.split("; ")[0] for line in problems(folder, text)] == [
        "job.yaml:1:1: unknown key `nam`",
        "job.yaml:2:15: 's3://b/x' is not on this machine",
        "job.yaml:2:27: unknown key `fromat` in `input`",
        "job.yaml:2:53: 'strng' is not a column type",
        "job.yaml:2:61: ';;' is not one ASCII character",
        "job.yaml:2:86: `header` is true or false, not 'no'",
        "job.yaml:4:22: '=' has no meaning here",
        "job.yaml:5:3: unknown key `wher` in `map`",
        "job.yaml:6:28: expected a value, the expression ends",
        "job.yaml:6:31: `a` is here twice, first on line 6",
        "job.yaml:8:14: 'b' is not a column of select",
        "job.yaml:8:20: column 'f' is named twice",
        "job.yaml:9:18: 'f' is already a column of group_by",
        "job.yaml:9:18: 'ff' is not a column of select",
        "job.yaml:9:30: there is no aggregate 'avg'",
        "job.yaml:9:41: 'max' is not an aggregate call",
        "job.yaml:10:29: there is no format 'csvv'",
        "job.yaml:10:46: `overwrite` is true or false, not 'maybe'",
        "job.yaml:11:1: unknown key `memory`",
        "job.yaml:12:21: memory: 'lots' is not a size",
        "job.yaml:12:37: reducers: '-3' is not a number of reducers",
        "job.yaml:12:48: `slots` is one value, not a list",
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("nam: a\n", "1:1: unknown key `nam`; did you mean name?"),
        ("where: x > 1\n", "1:1: unknown key `where`; it belongs under `map`"),
        (
            "map: {aggregate: {n: count()}}\n",
            "1:7: unknown key `aggregate` in `map`; it belongs under `reduce`",
        ),
        ("map: {where: x, selct: {}}\n", "1:17: unknown key `selct` in `map`; did you mean select?"),
        ("map: {where: }\n", "1:7: `where` is empty; give it a value or leave it out"),
        ("map: {}\n", "1:1: the map is empty; add where or select, or leave map out"),
        (
            "map: temp > 0\n",
            "1:6: 'temp > 0' does not name code; write FILE.py:NAME, such as wordcount.py:WordCount",
        ),
        (
            "map: nope.py:f\n",
            "1:6: there is no file 'nope.py'; paths in a job file are relative to its folder",
        ),
        (
            "map: [a]\n",
            "1:6: `map` is keys and values, not a list; write map: {where: temp > 0}, or map: FILE.py",
        ),
        ("map: {where: [a]}\n", "1:14: `where` is one value, not a list; write one value"),
        ("map: {where: &x a}\n", "1:14: anchors are not used in a job file; delete it"),
        ("map: {where: a, <<: {select: 3}}\n", "1:17: unknown key `<<` in `map`; write the keys out"),
        (
            "map: {where: !!python/name:os.system x}\n",
            "1:14: tags such as tag:yaml.org,2002:python/name:os.system are not used in a job file; d",
        ),
        (
            "map: {select: {g: if_else(a, b, 3)}}\n",
            "1:31: `b` in `select` is empty; an expression with a comma goes in quotes inside {...},",
        ),
        (
            "map: {where: a}\ncombine: sum\n",
            "2:1: `combine` needs a map function; aggregates combine by themselves: leave it out",
        ),
        (
            "map: mod.py:f\ncombine: mean\n",
            "2:10: 'mean' is no combiner; write sum, min, max or FILE.py:FUNCTION",
        ),
        (
            "map: {where: a}\nreduce: mod.py:f\n",
            "2:1: a reduce function needs a map function, which gives it keys; add map: FILE.py:FUNCT",
        ),
        (
            "map: mod.py:f\nreduce: {group_by: [key], aggregate: {n: count()}}\n",
            "2:1: aggregates need declared columns, not a map function; write reduce: FILE.py:FUNCTIO",
        ),
        (
            "reduce: {aggregate: {n: count()}}\n",
            "1:9: `reduce` has no group_by; add group_by: [station]; [] makes one group of all rows",
        ),
        ("reduce: {group_by: [a]}\n", "1:9: `reduce` has no aggregate; add aggregate: {rows: count()}"),
        (
            "reduce: {group_by: [a], aggregate: {}}\n",
            "1:25: there is nothing to compute; add {rows: count()}",
        ),
        (
            "reduce: {group_by: [a], aggregate: {n: count()}}\nresources: {reducers: 0}\n",
            "1:1: 0 reducers is a map-only job, but it has `reduce`; leave one of them out",
        ),
        ("map: {where: a}\nname: a\nname: b\n", "3:1: `name` is here twice, first on line 2; keep one"),
        ("? [a]\n: b\nmap: {where: a}\n", "1:3: a key is a name; write name: value"),
        ("map: {where: 'a $ b'}\n", "1:17: '$' has no meaning in an expression"),
        (
            "map:\n  where: >\n    a\n    and $\n",
            "2:10: '$' has no meaning in an expression (character 7 of the expression)",
        ),
        (
            "map: {where: a}\noutput: out\n",
            "2:9: `output` is keys and values, not 'out'; write output: {path: out, format: csv}",
        ),
        ("name: a\n", "1:1: there is nothing to do; add map, reduce or job"),
    ],
)
def test_one_problem(folder: Path, text: str, wanted: str) -> None:
    found = problems(folder, text, Overrides(inputs=("a.csv",)))
    assert any(line.startswith(f"job.yaml:{wanted}") for line in found), found


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "job.yaml:1:1: the file is empty"),
        ("- a\n", "job.yaml:1:1: the file is not a mapping"),
        ("a: b: c\n", "job.yaml:1:5: not YAML: mapping values are not allowed here"),
        ("where: 'a' == b\n", "job.yaml:1:12: not YAML"),
        ("a: b\n---\nc: d\n", "job.yaml:2:1: not YAML"),
        ("a:\n\tb: c\n", "YAML takes no tabs"),
        ("a: \x00\n", "job.yaml:1:4: not YAML: the character '\\x00'"),
        ("[" * 1500, "nested too deeply"),
        ("name: *a\n", "job.yaml:1:7: aliases are not used"),
    ],
)
def test_what_is_no_job_file(folder: Path, text: str, wanted: str) -> None:
    assert wanted in "\n".join(problems(folder, text))


def test_files_that_cannot_be_read(folder: Path) -> None:
    (folder / "job.yaml").write_text(ISSUE)
    with pytest.raises(UsageError, match=r"did you mean job.yaml\?"):
        load_job_file(str(folder / "jbo.yaml"))
    (folder / "latin.yaml").write_bytes(b"name: a\nmap: {where: x == 'caf\xe9'}\n")
    with pytest.raises(JobFileError, match=r"latin.yaml:2:23: not UTF-8"):
        load_job_file(str(folder / "latin.yaml"))
    (folder / "big.yaml").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(JobFileError, match="larger than 1 MB"):
        load_job_file(str(folder / "big.yaml"))
    with pytest.raises(UsageError, match="cannot be read"):
        load_job_file(str(folder))


def test_a_job_class_stands_alone(folder: Path) -> None:
    assert problems(folder, "job: mod.py:f\nmap: {where: a}\nreduce: mod.py:f\n") == [
        "job.yaml:2:1: `map` stands beside `job`; the class has its own: leave one of them out",
        "job.yaml:3:1: `reduce` stands beside `job`; the class has its own: leave one of them out",
    ]


def test_declared_problems_name_their_place() -> None:
    found: list[Problem] = []
    validate_declared("a >", {"x": "a", "": "b"}, ["y", "x"], {"x": "sum(z)", "n": "count("}, found)
    assert [problem.path for problem in found] == [
        ("where",),
        ("select", ""),
        ("group_by", "0"),
        ("aggregate", "x"),
        ("aggregate", "x"),
        ("aggregate", "n"),
    ]
