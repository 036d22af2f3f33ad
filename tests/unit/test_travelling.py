"""`files`, `modules` and `env` as a job file and a job class say them, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import cortex
from cortex import side_files
from cortex.class_spec import build_spec
from cortex.errors import JobFileError, UsageError
from cortex.job.travelling import env_problem, taken_twice
from cortex.job.yaml_file import load_job_file
from cortex.tasks.environment import template_environment


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "stop.txt").write_text("the a")
    (tmp_path / "words.py").write_text("def words(line):\n    yield line, 1\n")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "text.py").write_text("MARK = 1\n")
    (tmp_path / "lib" / "pkg").mkdir()
    (tmp_path / "lib" / "pkg" / "__init__.py").write_text("")
    (tmp_path / "lib" / "random.py").write_text("")
    (tmp_path / "lib" / "my-mod.py").write_text("")
    return tmp_path


def job_file(folder: Path, text: str) -> str:
    path = folder / "job.yaml"
    path.write_text(f"input: {{path: in.txt}}\nmap: words.py:words\n{text}")
    return str(path)


def test_a_job_file_names_what_travels(folder: Path) -> None:
    text = "files: {stop: data/stop.txt, all: data}\nmodules: [lib/text.py, lib/pkg]\nenv: {LANG: C, N: 1}\n"
    spec = load_job_file(job_file(folder, text)).spec
    assert spec.files == {"stop": str(folder / "data/stop.txt"), "all": str(folder / "data")}
    assert spec.modules == (str(folder / "lib/text.py"), str(folder / "lib/pkg"))
    assert spec.env == {"LANG": "C", "N": "1"}


def test_a_file_of_a_list_is_called_as_it_is(folder: Path) -> None:
    assert load_job_file(job_file(folder, "files: [data/stop.txt, lib/]\n")).spec.files == {
        "stop.txt": str(folder / "data/stop.txt"),
        "lib": str(folder / "lib"),
    }
    assert list(load_job_file(job_file(folder, "files: data/stop.txt\n")).spec.files) == ["stop.txt"]


def test_every_mistake_is_told_with_its_line_and_cure(folder: Path) -> None:
    text = (
        "files: {stop: data/stop.tx, ../up: data/stop.txt}\n"
        "modules: [lib/random.py, lib/my-mod.py, data/stop.txt, data]\n"
        "env: {CORTEX_HOME: x, LD_PRELOAD: y, PYTHONHASHSEED: 1, OMP_NUM_THREADS: 4, 'a b': c}\n"
        "fils: [data]\n"
    )
    with pytest.raises(JobFileError) as raised:
        load_job_file(job_file(folder, text))
    lines = raised.value.message.splitlines()
    expected = [
        ":3:15: there is no", "did you mean stop.txt?",
        ":3:36: a file cannot be named '../up': it has an empty part, . or ..",
        ":4:11: a module named random would hide the one that executors need",
        ":4:26: my-mod.py cannot be imported: 'my-mod' is no identifier",
        "is no module; name a .py file or a package's folder; other files go under `files`",
        "has no .py file in it",
        ":5:20: CORTEX_HOME cannot be set by a job: it is cortex's own",
        "LD_PRELOAD cannot be set by a job: it is read when a process starts",
        "PYTHONHASHSEED cannot be set by a job", "it is 0, so that sets iterate alike",
        "OMP_NUM_THREADS cannot be set by a job: cortex runs one thread a slot; raise --slots instead",
        "'a b' is no name of a variable",
        ":6:1: unknown key `fils`; did you mean files?",
    ]  # fmt: skip
    for text in expected:
        assert any(text in line for line in lines), (text, lines)
    assert len(lines) == 12


def test_a_declared_job_takes_nothing_along(folder: Path) -> None:
    path = folder / "declared.yaml"
    path.write_text("input: {path: a.csv}\nmap: {where: a > 0}\nfiles: [data]\nenv: {A: b}\n")
    with pytest.raises(JobFileError) as raised:
        load_job_file(str(path))
    assert ":3:1: `files` is for a job's code, and this one has none; leave it out" in raised.value.message
    assert ":4:1: `env` is for a job's code" in raised.value.message


def job_class(**attributes: Any) -> Any:
    def mapper(self: Any, line: str) -> Any:
        yield line, 1

    return type("Job", (cortex.MapReduceJob,), {"input": "in.txt", "map": mapper, **attributes})


def test_a_class_names_what_travels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    spec = build_spec(job_class(files={"s": "data/stop.txt"}, modules="lib/text.py", env={"A": "b"})())
    assert spec.files == {"s": str(folder / "data/stop.txt")}
    assert spec.modules == (str(folder / "lib/text.py"),)
    assert spec.env == {"A": "b"}
    assert build_spec(job_class(files=[Path("data/stop.txt")])()).files == {
        "stop.txt": str(folder / "data/stop.txt")
    }


def test_a_class_is_told_every_mistake_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    made = job_class(
        files=["data/stop.txt", "lib/../data/stop.txt"], modules=["lib"], env={"LD_X": "1", "A": 2}
    )
    with pytest.raises(JobFileError) as raised:
        build_spec(made())
    assert "files: two files are named 'stop.txt'; give a dict of name: path" in raised.value.message
    assert "env: LD_X cannot be set by a job" in raised.value.message
    assert "env: 'A': 2 must both be text" in raised.value.message
    with pytest.raises(JobFileError, match="files: it is for a job's code, and a declared job runs none"):
        build_spec(cortex.MapReduceJob(input="a.csv", where="a > 0", files=["data"]))


def test_a_file_beside_the_class_is_the_cure(folder: Path) -> None:
    made = job_class(files=["test_versions.py"])
    with pytest.raises(JobFileError, match=r"beside the class there is .*test_versions\.py"):
        build_spec(made())


def test_what_cortex_fixes_for_executors_no_job_can_set() -> None:
    for name, value in template_environment({}).items():
        assert env_problem(name, value) is not None, name
    assert env_problem("PATH", "/bin") is None


def test_names_that_are_taken() -> None:
    assert taken_twice(["a", "b", "a"]) == ["a"]
    assert taken_twice(["a/b", "a"]) == ["a"]
    assert taken_twice(["a", "a/b", "ab"]) == ["a/b"]


def test_files_are_asked_for_by_name_in_tasks_alone(folder: Path) -> None:
    job = job_class()()
    side_files.close_files()
    with pytest.raises(UsageError, match="outside of a task"):
        job.file("stop.txt")
    try:
        side_files.open_files(str(folder), ["stop.txt", "models", "models/de.bin"])
        assert job.file("models/de.bin") == cortex.file("models/de.bin") == str(folder / "models/de.bin")
        assert job.file("models/") == str(folder / "models")
        for name, cure in (
            ("stop.tx", "did you mean 'stop.txt'?"),
            ("zzzzz", "the job has models, stop.txt; list others under `files`"),
            ("../stop.txt", "did you mean 'stop.txt'?"),
        ):
            with pytest.raises(UsageError) as raised:
                job.file(name)
            assert raised.value.cure == cure
        side_files.open_files("", [])
        with pytest.raises(UsageError) as raised:
            job.file("zz.txt")
        assert raised.value.cure == "list it under `files`, such as files: [zz.txt]"
    finally:
        side_files.close_files()
