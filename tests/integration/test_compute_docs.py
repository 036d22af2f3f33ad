"""The pages on `cortex compute` and `cortex.Client`: their blocks of code, run as they stand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cortex.job.compute_file import load_compute_file
from tests.integration.test_cli_examples import ROOT, run

GUIDE = (ROOT / "docs" / "compute.md").read_text()
README = (ROOT / "README.md").read_text()
MIGRATION = (ROOT / "docs" / "from-multiprocessing-dask-ray.md").read_text()
SCRIPTS = re.findall(r"^```python\n(.*?)^```$", MIGRATION, re.M | re.S)


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", GUIDE, re.M | re.S)
    return [text for of, text in found if of == language]


@pytest.mark.parametrize("number", range(len(SCRIPTS)))
def test_scripts_of_the_migration_page(number: int, tmp_path: Path) -> None:
    assert "assert" in SCRIPTS[number]
    (tmp_path / "script.py").write_text(SCRIPTS[number])
    assert run(tmp_path, "script.py") == ""


def test_the_guides_first_run(tmp_path: Path) -> None:
    (function,) = blocks("python")
    config, _ = blocks("yaml")
    command, *_ = blocks("sh")
    shown, *_ = blocks("")
    (tmp_path / "cortex_function.py").write_text(function)
    (tmp_path / "cortex_config.yaml").write_text(config)
    assert command.split() == ["cortex", "compute", "cortex_config.yaml"]
    assert run(tmp_path, "-m", *command.split()) == ""
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert lines[:3] == shown.splitlines()
    assert json.loads(lines[-1]) == {"call": 999, "result": 998001}
    assert len(lines) == 1000


def test_the_guides_file_with_all_keys(tmp_path: Path) -> None:
    (function,) = blocks("python")
    _, config = blocks("yaml")
    (tmp_path / "cortex_function.py").write_text(function)
    (tmp_path / "cortex_config.yaml").write_text(config)
    run(tmp_path, "-m", "cortex", "compute", "cortex_config.yaml", "--quiet")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    expected = [{"x": x, "power": power} for x in (1, 2, 3) for power in (2, 3, 4)]
    assert [each["arguments"] for each in lines] == expected
    assert [each["result"] for each in lines] == [each["x"] ** each["power"] for each in expected]


def test_every_source_of_the_guide_is_one(tmp_path: Path) -> None:
    table = GUIDE.partition("## Arguments")[2].partition("## All keys")[0]
    rows = re.findall(r"^\| (`.*?`) \| `f\(", table, re.M)
    sources = [source for row in rows for source in re.findall(r"`(.*?)`", row)]
    assert len(sources) >= 9
    (tmp_path / "cortex_function.py").write_text("def cortex_function(*a, **k):\n    return [a, k]\n")
    (tmp_path / "values.jsonl").write_text("[1, 2]\n")
    (tmp_path / "rows.csv").write_text("x,y,note\n1,2.5,text\n")
    (tmp_path / "photos" / "of").mkdir(parents=True)
    (tmp_path / "photos" / "of" / "a.jpg").write_bytes(b"")
    for source in sources:
        (tmp_path / "c.yaml").write_text(f"function: cortex_function.py\narguments: {source}\n")
        arguments = load_compute_file("c.yaml", cwd=str(tmp_path)).arguments
        arguments.check()
        assert arguments.count() == len(list(arguments)) > 0


def test_options_of_the_guide_are_those_of_the_command() -> None:
    told = set(re.findall(r"`(--[a-z-]+)", GUIDE))
    done = subprocess.run(
        [sys.executable, "-m", "cortex", "compute", "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert told - set(re.findall(r"--[a-z-]+", done.stdout)) == set()
    assert len(told) > 8


def test_the_readmes_script_and_file(tmp_path: Path) -> None:
    section = README.partition("## Any function over any arguments\n")[2].partition("\n## ")[0]
    script, config = re.findall(r"^```(?:python|yaml)\n(.*?)^```$", section, re.M | re.S)
    (tmp_path / "script.py").write_text(script)
    assert run(tmp_path, "script.py").split() == [str(n * n) for n in range(1000)]
    (tmp_path / "tools.py").write_text("import os\ndef resize(path):\n    return os.path.basename(path)\n")
    (tmp_path / "photos" / "of").mkdir(parents=True)
    (tmp_path / "photos" / "of" / "a.jpg").write_bytes(b"")
    (tmp_path / "cortex_config.yaml").write_text(config)
    run(tmp_path, "-m", "cortex", "compute", "cortex_config.yaml")
    assert (tmp_path / "results.jsonl").read_text() == '{"call": 0, "result": "a.jpg"}\n'


def test_progress_of_a_script_in_a_notebook(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import os, time\nimport cortex\n"
        "os.environ['JPY_PARENT_PID'] = '1'\n"
        "def nap(n):\n    time.sleep(0.4)\n    return n\n"
        "if __name__ == '__main__':\n"
        "    import sys\n    sys.stderr = sys.stdout\n"
        "    with cortex.Client(slots=1) as client:\n"
        "        client.submit(nap, 0).result()\n"
        "        with client.show_progress(total=4):\n"
        "            list(client.map(nap, range(4)))\n"
    )
    shown = [each.strip() for each in run(tmp_path, "script.py").replace("\r", "\n").splitlines()]
    assert any(re.match(r"[123] of 4 · 1 running", each) for each in shown), shown
    assert shown[-1] == ""
