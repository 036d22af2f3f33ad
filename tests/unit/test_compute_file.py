"""The file of ``cortex compute``: every source and key, and what is refused, with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cortex.errors import InputError, JobFileError, UsageError
from cortex.job.argument_sources import (
    CsvArguments,
    FilesArguments,
    LinesArguments,
    ListArguments,
    ProductArguments,
    RangeArguments,
    expand,
    range_length,
)
from cortex.job.compute_file import (
    ComputeFile,
    ComputeOutput,
    ComputeOverrides,
    load_compute_file,
    parse_retries,
    parse_timeout,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cortex_function.py").write_text("def cortex_function(x):\n    return x\n")
    (tmp_path / "words.txt").write_text("a\n")
    return tmp_path


def load(folder: Path, text: str, overrides: ComputeOverrides | None = None) -> ComputeFile:
    (folder / "c.yaml").write_text(text)
    return load_compute_file("c.yaml", overrides, cwd=str(folder))


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(JobFileError) as caught:
        load(folder, text)
    return caught.value.message.splitlines()


def arguments(folder: Path, text: str) -> Any:
    return load(folder, f"function: cortex_function.py\narguments: {text}\n").arguments


def test_all_keys(folder: Path) -> None:
    found = load(
        folder,
        """
name: squares
function: cortex_function.py
arguments: [1, 2]
response_mode: stream
output: {path: out/r.jsonl, values: repr, arguments: true, overwrite: true}
resources: {memory: 2GB, slots: 4}
retries: 2
timeout: 30s
errors: collect
files: [words.txt]
modules: [cortex_function.py]
env: {LEVEL: "3"}
priority: 1
""",
    )
    assert found.function.file == str(folder / "cortex_function.py")
    assert (found.function.module, found.function.name) == ("", "cortex_function")
    assert found.output == ComputeOutput(str(folder / "out/r.jsonl"), "repr", True, True)
    assert (found.name, found.mode, found.errors, found.priority) == ("squares", "stream", "collect", 1)
    assert (found.memory_bytes, found.slots, found.retries, found.timeout_s) == (2 << 30, 4, 2, 30.0)
    assert found.files == (("words.txt", str(folder / "words.txt")),)
    assert found.modules == (str(folder / "cortex_function.py"),)
    assert found.env == (("LEVEL", "3"),)


def test_what_is_not_said(folder: Path) -> None:
    found = load(folder, "function: cortex_function.py:Tools.go\narguments: {range: 3}\n")
    assert (found.name, found.function.name) == ("go", "Tools.go")
    assert (found.mode, found.errors, found.output, found.timeout_s) == (
        "ordered", "raise", ComputeOutput(), 0.0,
    )  # fmt: skip


def test_a_function_of_a_module(folder: Path) -> None:
    function = load(folder, "function: os.path:basename\narguments: [/a/b]\n").function
    assert (function.file, function.module, function.name) == ("", "os.path", "basename")


def test_options_come_before_the_file(folder: Path) -> None:
    given = ComputeOverrides(
        mode="collect", output="r.jsonl", overwrite=True, values="pickle", memory_bytes=7, slots=3,
        retries=0, timeout_s=2.0, errors="collect", priority=-1,
    )  # fmt: skip
    text = "function: cortex_function.py\narguments: [1]\noutput: x.jsonl\nretries: 5\n"
    found = load(folder, text, given)
    assert found.output == ComputeOutput(str(folder / "r.jsonl"), "pickle", False, True)
    assert (found.mode, found.retries, found.timeout_s, found.slots) == ("collect", 0, 2.0, 3)
    assert (found.errors, found.priority, found.memory_bytes) == ("collect", -1, 7)
    assert load(folder, text, ComputeOverrides(mode="none")).output.path == ""
    with pytest.raises(UsageError, match="nothing to write to --output"):
        load(folder, text, ComputeOverrides(mode="none", output="r.jsonl"))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[1, -2.5, 1e3, true, null]", [1, -2.5, 1000.0, True, None]),
        ("['1', no_, 2024-01-01, 1.10.2, a b]", ["1", "no_", "2024-01-01", "1.10.2", "a b"]),
        ("[[1, 2], {a: [x]}, '', []]", [[1, 2], {"a": ["x"]}, "", []]),
        ("[]", []),
    ],
)
def test_values_are_those_of_json(folder: Path, text: str, values: list[Any]) -> None:
    source = arguments(folder, text)
    assert [(type(v), v) for v in source] == [(type(v), v) for v in values]
    assert (source.form, source.count()) == ("one", len(values))


@pytest.mark.parametrize("text", ["yes", "0x10", "1_000", ".5", ".inf", "off", "~", "+1", "0777"])
def test_what_may_be_two_things_is_refused(folder: Path, text: str) -> None:
    (problem,) = problems(folder, f"function: cortex_function.py\narguments:\n  - 1\n  - {text}\n")
    assert problem.startswith("c.yaml:4:5: ")
    assert "may be" in problem


def test_a_list_with_star(folder: Path) -> None:
    source = arguments(folder, "{list: [[1, 2], {a: 3}], star: true}")
    assert (source.form, list(source)) == ("full", [((1, 2), {}), ((), {"a": 3})])
    (problem,) = problems(
        folder, "function: cortex_function.py\narguments:\n  star: true\n  list:\n    - [1]\n    - 5\n"
    )
    assert problem.startswith("c.yaml:6:7: with star, each entry is a list or a mapping")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("5", range(5)),
        ("[5]", range(5)),
        ("[2, 9]", range(2, 9)),
        ("[9, 0, -4]", range(9, 0, -4)),
        ("[0, 100000000000000000]", range(10**17)),
    ],
)
def test_a_range(folder: Path, text: str, numbers: range) -> None:
    source = arguments(folder, f"{{range: {text}}}")
    assert source == RangeArguments(numbers)
    assert source.count() == (len(numbers) if numbers.stop < 10**10 else 10**17)
    assert next(iter(source)) == numbers[0]


@pytest.mark.parametrize("numbers", [range(0), range(3, 3), range(5, 2), range(0, 7, 3), range(7, 0, -3)])
def test_the_length_of_a_range(numbers: range) -> None:
    assert range_length(numbers) == len(numbers)


def test_a_product(folder: Path) -> None:
    source = arguments(folder, "{product: [[1, 2], [a], {range: 2}]}")
    assert source.form == "star"
    assert list(source) == [(1, "a", 0), (1, "a", 1), (2, "a", 0), (2, "a", 1)]
    assert (source.count(), source.text) == (4, "product of 2 x 1 x 2")
    named = arguments(folder, "{product: {rate: [0.1, 0.5], seed: [7]}}")
    assert list(named) == [((), {"rate": 0.1, "seed": 7}), ((), {"rate": 0.5, "seed": 7})]
    assert (named.form, named.text) == ("full", "product of rate (2) x seed (1)")
    assert list(ProductArguments(((), (1,)))) == []


def test_a_product_of_long_ranges_is_not_held(folder: Path) -> None:
    source = arguments(folder, f"{{product: [[1], {{range: {10**15}}}]}}")
    assert source.count() == 10**15
    assert next(iter(source)) == (1, 0)


def test_lines(folder: Path) -> None:
    (folder / "in.jsonl").write_text('1\n\n"zwei"\n  \n{"a": [3]}')
    source = arguments(folder, "{lines: in.jsonl}")
    assert list(source) == list(source) == [1, "zwei", {"a": [3]}]
    assert (source.form, source.count()) == ("one", 3)
    (folder / "in.jsonl").write_text('[1, 2]\n{"a": 3}\n')
    source = arguments(folder, "{lines: in.jsonl, star: true}")
    assert (source.form, list(source)) == ("full", [((1, 2), {}), ((), {"a": 3})])


@pytest.mark.parametrize(("line", "spread"), [("{a: 1}", False), ("oslo", False), ("5", True)])
def test_a_line_that_cannot_be_is_named(folder: Path, line: str, spread: bool) -> None:
    path = folder / "in.jsonl"
    path.write_text(f"[1]\n\n{line}\n")
    entries = iter(LinesArguments(str(path), spread))
    assert next(entries) == (((1,), {}) if spread else [1])
    with pytest.raises(InputError) as caught:
        next(entries)
    assert caught.value.details == {"file": str(path), "line": "3", "text": line}


def test_rows(folder: Path) -> None:
    (folder / "in.csv").write_text('x,y,note\n1,2.5,"a, b"\n\n-3,,"two\nlines"\n')
    source = arguments(folder, "{csv: in.csv, types: {x: int, y: float}}")
    first, second = {"x": 1, "y": 2.5, "note": "a, b"}, {"x": -3, "y": None, "note": "two\nlines"}
    assert list(source) == [((), first), ((), second)]
    assert (source.form, source.count()) == ("full", 2)
    whole = arguments(folder, "{csv: in.csv, star: false}")
    assert (whole.form, next(iter(whole))) == ("one", {"x": "1", "y": "2.5", "note": "a, b"})
    (folder / "in.tsv").write_text("a\tok\n[1]\tyes\n")
    assert list(arguments(folder, "{csv: in.tsv, types: {a: json, ok: bool}, star: false}")) == [
        {"a": [1], "ok": True}
    ]
    (folder / "semi.csv").write_text("a;b\n1;2\n")
    assert next(iter(arguments(folder, "{csv: semi.csv, delimiter: ';', star: false}"))) == {
        "a": "1",
        "b": "2",
    }


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ("x,y\n1,2\n3\n", "1 field, the header 2", "3"),
        ("x,y\n1,2\nthree,4\n", "column 'x' is 'three', which is no int", "3"),
        ('x,y\n1,2\n"3" 4,5\n', "a row cannot be read", "3"),
        ("x,x\n1,2\n", "the header names 'x' twice", "1"),
        ("y,z\n1,2\n", "there is no column 'x'", None),
        ("", "has no header", None),
    ],
)
def test_a_row_that_cannot_be_is_named(folder: Path, text: str, said: str, line: str | None) -> None:
    (folder / "in.csv").write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        list(CsvArguments(str(folder / "in.csv"), (("x", "int"),)))
    assert caught.value.details.get("line") == line


def test_a_csv_file_that_is_no_text(folder: Path) -> None:
    (folder / "in.csv").write_bytes(b"x\n1\n\xff\xfe\n")
    with pytest.raises(InputError, match="a row cannot be read: 'utf-8'"):
        list(CsvArguments(str(folder / "in.csv")))


def test_files_are_matched_in_order(folder: Path) -> None:
    for name in ("b/2.txt", "b/1.txt", "a/c/3.txt", "a/0.txt", "a/.hidden.txt", ".git/4.txt", "a/5.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")

    def names(pattern: str) -> list[str]:
        return [str(Path(p).relative_to(folder)) for p in expand(str(folder / pattern))]

    assert names("*/*.txt") == ["a/0.txt", "b/1.txt", "b/2.txt"]
    assert names("**/*.txt") == ["words.txt", "a/0.txt", "a/c/3.txt", "b/1.txt", "b/2.txt"]
    assert names("a/**") == ["a/0.txt", "a/5.md", "a/c/3.txt"]
    assert names("[ab]/?.txt") == ["a/0.txt", "b/1.txt", "b/2.txt"]
    assert names("a/.*") == ["a/.hidden.txt"]
    assert names("b/1.txt") == ["b/1.txt"]
    assert names("a") == names("nowhere/*") == names("words.txt/*") == []
    source = arguments(folder, "{files: ['b/*.txt', a/5.md]}")
    assert list(source) == [str(folder / n) for n in ("b/1.txt", "b/2.txt", "a/5.md")]
    assert source.count() == 3
    with pytest.raises(InputError, match="matches none"):
        arguments(folder, "{files: 'c/*.txt'}").check()


def test_long_files_are_not_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortex.job.argument_sources.ARGUMENTS_COUNTED_BYTES", 3)
    monkeypatch.setattr("cortex.job.argument_sources.ARGUMENT_FILES_COUNTED_MAX", 1)
    (folder / "in.jsonl").write_text("1\n2\n")
    (folder / "in.csv").write_text("a\n1\n2\n")
    assert LinesArguments(str(folder / "in.jsonl")).count() is None
    assert CsvArguments(str(folder / "in.csv")).count() is None
    assert FilesArguments((str(folder / "in.*"),)).count() is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("functoin: f.py\narguments: [1]", "c.yaml:1:1: unknown key `functoin`; did you mean function?"),
        ("arguments: [1]", "c.yaml:1:1: there is no function; add function: cortex_function.py"),
        ("function: cortex_function.py", "c.yaml:1:1: there are no arguments"),
        ("function: gone.py\narguments: [1]", "c.yaml:1:11: there is no file 'gone.py'"),
        ("function: json\narguments: [1]", "c.yaml:1:11: 'json' does not name a function"),
        ("function: a-b.py\narguments: [1]", "c.yaml:1:11: 'a-b.py' does not name a function"),
        ("function: a b:c\narguments: [1]", "c.yaml:1:11: 'a b:c' does not name a function"),
        ("@\narguments: 5", "c.yaml:2:12: `arguments` is keys and values, not '5'"),
        ("@\narguments: {range: 5, list: [1]}", "c.yaml:2:1: arguments have one source, not list and range"),
        ("@\narguments: {}", "c.yaml:2:1: arguments have one source, not none"),
        ("@\narguments: {ranje: 5}", "c.yaml:2:13: unknown key `ranje` in `arguments`; did you mean range?"),
        ("@\narguments: {range: [a]}", "c.yaml:2:13: a range is one to three whole numbers"),
        ("@\narguments: {range: [1, 2, 0]}", "c.yaml:2:27: the step of a range is not 0"),
        ("@\narguments: {range: 5, star: true}", "c.yaml:2:23: `star` is for list and lines and csv"),
        ("@\narguments: {product: 5}", "c.yaml:2:13: a product is of one or more lists"),
        ("@\narguments: {product: [1]}", "c.yaml:2:23: each part of a product is a list"),
        ("@\narguments: {product: {x: 1}}", "c.yaml:2:26: each part of a product is a list"),
        ("@\narguments: {list: 5}", "c.yaml:2:13: `list` is a list of values"),
        ("@\narguments: {lines: gone}", "c.yaml:2:20: there is no file 'gone'"),
        ("@\narguments: {csv: words.txt, types: {a: int8}}", "c.yaml:2:40: there is no type 'int8'"),
        ("@\narguments: {csv: words.txt, delimiter: ab}", "c.yaml:2:29: 'ab' is no delimiter"),
        ("@\narguments: {files: []}", "c.yaml:2:13: the list of files is empty"),
        ("@\narguments: {files: '**/a/**'}", "c.yaml:2:20: a glob has `**` once at most"),
        ("@\narguments: [1]\nresponse_mode: ordred", "c.yaml:3:16: there is no response_mode 'ordred'; did"),
        ("@\narguments: [1]\nretries: -1", "c.yaml:3:10: retries: '-1' is not a number of retries"),
        ("@\narguments: [1]\ntimeout: 0", "c.yaml:3:10: timeout: a call cannot be given '0'"),
        ("@\narguments: [1]\ntimeout: soon", "c.yaml:3:10: timeout: 'soon' is not a time"),
        ("@\narguments: [1]\noutput: {values: xml}", "c.yaml:3:18: there is no values 'xml'"),
        ("@\narguments: [1]\nresponse_mode: none\noutput: x", "c.yaml:4:1: there is no output in"),
        ("@\narguments: [1]\nmemory: 2GB", "c.yaml:3:1: unknown key `memory`; it belongs under `resources`"),
        ("@\narguments: [1]\nresources: {memry: 2GB}", "c.yaml:3:13: unknown key `memry` in `resources`"),
        ("@\narguments: [1]\nfiles: [gone.txt]", "c.yaml:3:9: there is no"),
        ("@\narguments: [1, *x]", "c.yaml:2:16: aliases are not used in a job file"),
        ("@\narguments: [{a: 1, a: 2}]", "c.yaml:2:20: `a` is here twice"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(folder: Path, text: str, expected: str) -> None:
    found = problems(folder, text.replace("@", "function: cortex_function.py"))
    assert [line for line in found if line.startswith(expected)], found


def test_all_problems_at_once(folder: Path) -> None:
    found = problems(folder, "function: gone.py\narguments: {rang: 4}\nretries: x\nerrors: ignore\n")
    assert [line.split(":")[1] for line in found] == ["1", "2", "2", "3", "4"]


def test_times_and_retries() -> None:
    assert [parse_timeout(text) for text in ("30", "1.5", "30s", "2m")] == [30.0, 1.5, 30.0, 120.0]
    assert parse_retries("0") == 0
    for text in ("101", "1.5", "", "-1"):
        with pytest.raises(UsageError):
            parse_retries(text)


def test_a_list_needs_no_file() -> None:
    source = ListArguments((1, 2))
    source.check()
    assert (list(source), source.text) == ([1, 2], "a list")
