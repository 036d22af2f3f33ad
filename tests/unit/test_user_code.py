"""Loading ``file.py:Name`` and pickling what it holds, unpickled in another process as an executor would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cortex.api import MapReduceJob
from cortex.errors import UsageError, UserCodeError
from cortex.user_code import dump_code, executor_sys_path, load_module, load_object, pickle_code

JOB = """
import cortex
from helper_of_job import double

class Job(cortex.MapReduceJob):
    def map(self, record):
        yield record, double(record)
"""


@pytest.fixture(autouse=True)
def _restore_modules() -> Iterator[None]:
    modules, path = dict(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - set(modules):
        if "job" in name or "helper" in name:
            del sys.modules[name]
    sys.path[:] = path


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "helper_of_job.py").write_text("def double(x):\n    return x * 2\n")
    path = tmp_path / "job_script.py"
    path.write_text(JOB)
    return path


def run_elsewhere(code: bytes, expression: str, *folders: str) -> str:
    """`expression` of the unpickled `code`, in a process that knows of the folders of modules only these."""
    program = f"import sys, pickle; sys.path[:0] = {folders!r}; code = pickle.loads(sys.stdin.buffer.read())"
    program += f"; print({expression})"
    import_path = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], input=code, capture_output=True, check=True, cwd=import_path
    )
    return done.stdout.decode().strip()


def test_class_and_helper_beside_it_travel_by_value(script: Path) -> None:
    job = load_object(f"{script}:Job")()
    assert list(job.map(4)) == [(4, 8)]
    code = dump_code(job)
    script.with_name("helper_of_job.py").unlink()
    assert run_elsewhere(code, "list(code.map(4))") == "[(4, 8)]"
    assert str(script.parent) in executor_sys_path()


def test_folders_whose_names_are_not_utf_8_are_refused(
    tmp_path: Path, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tmp_path / "caf\udce9")
    os.mkdir(folder)
    with pytest.raises(UsageError, match=r"the path is not UTF-8: b'.*caf\\xe9/job_script.py'"):
        load_module(shutil.copy(script, folder))
    monkeypatch.setattr(sys, "path", [folder, folder + "/missing"])
    with pytest.raises(UsageError, match=r"a folder that modules.* is not UTF-8: b'.*caf\\xe9'\n") as caught:
        executor_sys_path()
    assert "PYTHONPATH" in caught.value.cure


def test_a_module_is_loaded_once_and_keeps_its_name(script: Path) -> None:
    module = load_module(str(script))
    assert load_module(str(script)) is module
    assert module.__name__ == "job_script"
    assert sys.modules["job_script"] is module


def test_names_that_are_taken_get_another(tmp_path: Path) -> None:
    for name in ("json", "my-job"):
        (tmp_path / f"{name}.py").write_text("x = 1\n")
        module = load_module(str(tmp_path / f"{name}.py"))
        assert module.x == 1
        assert module.__name__ not in ("json", "my-job")
    import json

    assert json.dumps(1) == "1"
    other = tmp_path / "b"
    other.mkdir()
    for folder in (tmp_path, other):
        (folder / "twin_job.py").write_text(f"where = {folder.name!r}\n")
    assert load_module(str(tmp_path / "twin_job.py")).where == tmp_path.name
    assert load_module(str(other / "twin_job.py")).where == "b"


def test_closures_and_classes_of_tests_travel() -> None:
    factor = 3

    class Local(MapReduceJob):
        def map(self, record: Any) -> Any:
            yield record, record * factor

    assert run_elsewhere(dump_code(Local()), "list(code.map(5))") == "[(5, 15)]"


@pytest.mark.parametrize(
    ("target", "message", "cure"),
    [
        ("job_script.py:Jub", "defines no 'Jub'", "did you mean 'Job'?"),
        ("job_script.py:Xyzzy", "defines no 'Xyzzy'", "it defines Job"),
        ("job_scirpt.py:Job", "no such file", "did you mean job_script.py?"),
        ("job_script.py", "does not name", "file.py:Name"),
        ("job_script.py:a b", "does not name", "file.py:Name"),
    ],
)
def test_targets_that_name_nothing(script: Path, target: str, message: str, cure: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_object(target, str(script.parent))
    assert cure in caught.value.cure


def test_a_failing_import_shows_the_users_frames_only(tmp_path: Path) -> None:
    (tmp_path / "bad_helper.py").write_text("def f():\n    return 1 / 0\n")
    path = tmp_path / "bad_job.py"
    path.write_text("import bad_helper\nbad_helper.f()\n")
    with pytest.raises(UserCodeError, match="ZeroDivisionError") as caught:
        load_module(str(path))
    shown = caught.value.details["traceback"]
    assert "bad_job.py" in shown
    assert "bad_helper.py" in shown
    assert "user_code.py" not in shown
    assert "importlib" not in shown
    assert "bad_job" not in sys.modules
    path.write_text("def f(:\n")
    with pytest.raises(UserCodeError, match="SyntaxError"):
        load_module(str(path))
    path.write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(UsageError, match="ended the program"):
        load_module(str(path))


class Holder(MapReduceJob):
    def map(self, record: Any) -> Any:
        yield record, 1


def test_what_cannot_be_pickled_is_named() -> None:
    job = Holder()
    job.connections = {"main": [threading.Lock()]}  # type: ignore[attr-defined]
    with pytest.raises(UserCodeError) as caught:
        dump_code(job)
    assert caught.value.message.startswith("Holder.connections['main'][0] cannot be sent")
    assert "setup()" in caught.value.cure


def test_a_closure_that_cannot_be_pickled_is_named(script: Path) -> None:
    lock = threading.Lock()

    class Closing(MapReduceJob):
        def map(self, record: Any) -> Any:
            with lock:
                yield record, 1

    with pytest.raises(UserCodeError, match=r"the variable 'lock' that Closing\.map uses cannot be sent"):
        dump_code(Closing())
    text = JOB.replace("import cortex", "import cortex, threading\nlog = threading.Lock()")
    script.write_text(text.replace("yield", "log; yield"))
    job = load_object(f"{script}:Job")()
    with pytest.raises(UserCodeError, match=r"the global 'log' that Job\.map uses cannot be sent"):
        dump_code(job)


def test_a_helper_that_cannot_be_pickled_is_imported(script: Path) -> None:
    helper = script.with_name("helper_of_job.py")
    helper.write_text(
        "import threading\nlock = threading.Lock()\ndef double(x):\n    with lock:\n        return x * 2\n"
    )
    code = dump_code(load_object(f"{script}:Job")())
    assert run_elsewhere(code, "list(code.map(4))", str(script.parent)) == "[(4, 8)]"


def test_code_keeps_the_name_of_its_file_whatever_cloudpickle_does(script: Path) -> None:
    job = load_object(f"{script}:Job")()
    assert run_elsewhere(dump_code(job), "type(code).map.__code__.co_filename") == str(script)


CACHED = """
import functools

@functools.cache
def fibonacci(n):
    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

class Table:
    @functools.lru_cache(maxsize=7)
    def row(self, n):
        return -n

def calls(n):
    rows = Table.row.cache_parameters()["maxsize"]
    return fibonacci(n), Table().row(n), rows, fibonacci.cache_info().misses
"""


def test_functions_with_a_cache_travel_with_all_that_calls_them(tmp_path: Path) -> None:
    """cloudpickle has them looked up by their name, which executors cannot."""
    (tmp_path / "cached_job.py").write_text(CACHED)
    module = load_module(str(tmp_path / "cached_job.py"))
    calls = pickle_code(module.calls, ("cached_job",)).code
    assert run_elsewhere(calls, "code(60)") == repr((1548008755920, -60, 7, 61))
    itself = pickle_code(module.fibonacci, ("cached_job",)).code
    assert run_elsewhere(itself, "code(60)") == "1548008755920"


def test_a_helper_that_a_function_imports_when_it_runs_is_needed_there(tmp_path: Path) -> None:
    """Though its code is in the pickle for another's sake."""
    (tmp_path / "helper_of_job.py").write_text("def double(x):\n    return x * 2\n")
    (tmp_path / "late_job.py").write_text(
        "import helper_of_job\n"
        "def early(x):\n    return helper_of_job.double(x)\n"
        "def late(x):\n    import helper_of_job\n    return helper_of_job.double(x)\n"
    )
    module = load_module(str(tmp_path / "late_job.py"))
    assert "helper_of_job" not in pickle_code(module.early, ("late_job",)).imports
    assert "helper_of_job" in pickle_code(module.late, ("late_job",)).imports
