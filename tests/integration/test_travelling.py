"""Side files, modules and variables that travel with a job: on this machine, and to the nodes of a cluster
that see none of the client's folders. And packages that nodes lack."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cortex
from cortex.client.embedded_start import child_environment
from tests.integration.hidden_cluster import HiddenCluster, can_hide

JOB = """
import os
import cortex
import helper
from pkg import mark
from pkg.deep import depth

class Words(cortex.MapReduceJob):
    def setup(self):
        self.stop = set(open(self.file("stop")).read().split())

    def map(self, line):
        for word in line.split():
            if word not in self.stop:
                yield helper.clean(word) + os.environ["SUFFIX"], 1

    def combine(self, key, values):
        assert os.path.isfile(self.file("data/more/deep.txt"))
        yield key, sum(values)

    def reduce(self, key, values):
        import lazy
        deep = open(os.path.join(self.file("data"), "more", "deep.txt")).read()
        yield key, (sum(values), mark(), depth(), deep, lazy.WORD, os.environ["SUFFIX"])
"""
FUNCTIONS = """
import cortex
import helper

def words(line):
    stop = open(cortex.file("stop.txt")).read().split()
    return [(helper.clean(word), 1) for word in line.split() if word not in stop]
"""
WHERE = """
import os, sys
import cortex
import helper

class Where(cortex.MapReduceJob):
    def map(self, line):
        yield line, [helper.__file__, self.file("stop.txt"), os.environ["HOME"], *sys.path]
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A client's folder: a job, its helpers and its data."""
    folder = tmp_path_factory.mktemp("client")
    (folder / "lib" / "pkg").mkdir(parents=True)
    (folder / "data" / "more").mkdir(parents=True)
    for name, text in {
        "words.py": JOB,
        "functions.py": FUNCTIONS,
        "where.py": WHERE,
        # a lock: pickled by value it is not
        "helper.py": (
            "import threading\nimport other\nLOCK = threading.Lock()\n"
            "def clean(word):\n    with LOCK:\n        return other.lower(word)\n"
        ),
        "other.py": "def lower(word):\n    return word.lower()\n",
        "lib/pkg/__init__.py": (
            "import os\nfrom .deep import depth\n"
            "def mark():\n    return open(os.path.join(os.path.dirname(__file__), 'mark.txt')).read()\n"
        ),
        "lib/pkg/deep.py": "import threading\nLOCK = threading.Lock()\ndef depth():\n    return bool(LOCK)\n",
        "lib/pkg/mark.txt": "a mark",
        "lazy.py": "WORD = 'lazy'\n",
        "data/stop.txt": "the a of",
        "data/more/deep.txt": "deep",
        "in.txt": "the Cat of a cat\nDog\n",
        "job.yaml": (
            "job: words.py:Words\ninput: {path: in.txt}\n"
            "files: {stop: data/stop.txt, data: data}\nmodules: [lib/pkg]\nenv: {SUFFIX: -x}\n"
        ),
        "functions.yaml": (
            "map: functions.py:words\ncombine: sum\ninput: {path: in.txt}\nfiles: [data/stop.txt]\n"
        ),
        "where.yaml": "job: where.py:Where\ninput: {path: in.txt}\nfiles: [data/stop.txt]\n",
        "wrong.yaml": "job: words.py:Words\ninput: {path: in.txt}\nfiles: {stopp: data/stop.txt}\n"
        "modules: [lib/pkg]\nenv: {SUFFIX: -x}\n",
    }.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cortex.LocalCluster]:
    """Where this machine allows it, the client's folders are empty for its nodes."""
    hidden = [tmp_path_factory.getbasetemp()] if can_hide() else []
    with HiddenCluster(2, hidden) if hidden else cortex.LocalCluster(nodes=2) as made:
        yield made


def start(folder: Path, job: str, cluster: Any = None, *paths: str) -> subprocess.Popen[str]:
    environment = child_environment()
    if cluster is not None:
        environment |= {"CORTEX_SERVER": cluster.address, "CORTEX_HOME": str(cluster.folder / "server")}
    environment["PYTHONPATH"] = os.pathsep.join([*paths, environment["PYTHONPATH"]])
    return subprocess.Popen(
        [sys.executable, "-m", "cortex", "mapreduce", "--json", job],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(folder: Path, job: str, cluster: Any = None, *paths: str) -> tuple[int, dict[str, Any], str]:
    """A command line in `folder`: exit code, what it printed as JSON, standard error."""
    with start(folder, job, cluster, *paths) as process:
        try:
            said, errors = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return process.returncode, json.loads(said or "{}"), errors


def wait_for(condition: Any, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(params=["machine", "cluster"])
def place(request: pytest.FixtureRequest) -> Any:
    """Where the job runs: None for this machine."""
    return request.getfixturevalue("cluster") if request.param == "cluster" else None


def test_files_modules_and_variables_reach_setup_map_combine_and_reduce(home: Path, place: Any) -> None:
    code, said, errors = run(home, "job.yaml", place)
    assert code == 0, (said, errors)
    rest = ["a mark", True, "deep", "lazy", "-x"]
    assert sorted(said["rows"]) == [["cat-x", [2, *rest]], ["dog-x", [1, *rest]]]


def test_functions_of_a_job_file_ask_for_files_too(home: Path, place: Any) -> None:
    code, said, errors = run(home, "functions.yaml", place)
    assert code == 0, (said, errors)
    assert sorted(said["rows"]) == [["cat", 2], ["dog", 1]]


def test_an_unknown_file_is_a_typed_error_with_its_cure(home: Path, place: Any) -> None:
    code, said, _ = run(home, "wrong.yaml", place)
    assert code == 2
    assert said["error"]["message"] == "the job has no file 'stop'"
    assert said["error"]["cure"] == "did you mean 'stopp'?"


def test_tasks_on_a_cluster_see_the_nodes_folders_only(home: Path, cluster: Any) -> None:
    code, said, errors = run(home, "where.yaml", cluster)
    assert code == 0, (said, errors)
    for _, (helper, stop, _home, *sys_path) in said["rows"]:
        assert helper.startswith(str(cluster.folder))
        assert stop.startswith(str(cluster.folder))
        assert not any(folder.startswith(str(home)) for folder in sys_path)


def folders_named(name: str, folder: Path) -> list[str]:
    """Below `folder`, from which some may go while we look."""
    return [os.path.join(above, name) for above, names, _ in os.walk(folder) if name in names]


def leftovers(cluster: Any) -> list[str]:
    found = [path for name in cluster.nodes for path in folders_named("bundle", cluster.folder / name)]
    return found + os.listdir(cluster.folder / "server" / "blobs")


def test_nothing_of_a_job_stays_behind(home: Path, cluster: Any) -> None:
    assert run(home, "job.yaml", cluster)[0] == 0
    wait_for(lambda: not leftovers(cluster))


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A job of eight slow maps that all read a file of 20 MB."""
    (tmp_path / "large.bin").write_bytes(os.urandom(1 << 20) * 20 + b"end")
    (tmp_path / "sums.py").write_text(
        "import hashlib, time, cortex\n"
        "class Sums(cortex.MapReduceJob):\n"
        "    reducers = 0\n"
        "    def map(self, line):\n"
        "        time.sleep(0.2)\n"
        "        with open(self.file('large.bin'), 'rb') as file:\n"
        "            yield self.file('large.bin'), hashlib.file_digest(file, 'md5').hexdigest()\n"
    )
    (tmp_path / "in.txt").write_text("x\n" * 8)
    (tmp_path / "job.yaml").write_text(
        "job: sums.py:Sums\ninput: {path: in.txt}\nfiles: [large.bin]\nresources: {split_size: 2B}\n"
    )
    return tmp_path


def test_a_large_file_is_the_same_on_every_node(large: Path, cluster: Any) -> None:
    code, said, errors = run(large, "job.yaml", cluster)
    assert code == 0, (said, errors)
    assert {row[1] for row in said["rows"]} == {hashlib.md5((large / "large.bin").read_bytes()).hexdigest()}
    assert len({row[0] for row in said["rows"]}) == 2  # a path of either node


def test_a_client_that_is_killed_while_it_sends_leaves_nothing(large: Path, cluster: Any) -> None:
    blobs = cluster.folder / "server" / "blobs"
    with open(large / "large.bin", "ab") as file:
        file.truncate(150 << 20)
    with start(large, "job.yaml", cluster) as process:
        wait_for(lambda: any(path.name.endswith(".part") for path in blobs.iterdir()))
        process.kill()
    assert process.returncode == -signal.SIGKILL
    wait_for(lambda: not list(blobs.iterdir()))


def test_a_node_that_is_killed_while_it_fetches_costs_nothing(large: Path) -> None:
    with cortex.LocalCluster(nodes=2) as cluster:
        spill = cluster.folder / "node1" / "spill"
        with start(large, "job.yaml", cluster) as process:
            wait_for(lambda: folders_named("blobs", spill))
            cluster.nodes["node1"].kill()
            said = json.loads(process.communicate(timeout=60)[0])
        assert process.returncode == 0
        assert {row[1] for row in said["rows"]} == {
            hashlib.md5((large / "large.bin").read_bytes()).hexdigest()
        }
        assert said["report"]["failed_attempts"] == 0


def test_a_class_takes_files_along_from_python(home: Path, cluster: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(home)

    class Stop(cortex.MapReduceJob):
        combine = sum

        def map(self, line: str) -> Any:
            stop = Path(self.file("stop.txt")).read_text().split()
            yield from ((word, 1) for word in line.split() if word in stop)

    job = Stop(input="in.txt", files=["data/stop.txt"])
    assert sorted(job.run(cluster)) == [("a", 1), ("of", 1), ("the", 1)]
    assert sorted(job.run()) == [("a", 1), ("of", 1), ("the", 1)]


# --- packages ---


def install(folder: Path, version: str, source: str) -> Path:
    """A folder with an installed package, as pip leaves it."""
    (folder / "wordlib").mkdir(parents=True)
    (folder / "wordlib" / "__init__.py").write_text(source)
    info = folder / f"Word_Lib-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: Word-Lib\nVersion: {version}\n")
    (info / "RECORD").write_text(f"wordlib/__init__.py,,\n{info.name}/METADATA,,\n")
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("venv") / "site-packages"
    return install(folder, "1.2", "def clean(word):\n    return word.lower()\n")


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    (folder / "clean.py").write_text(
        "import cortex\nimport wordlib\n"
        "class Clean(cortex.MapReduceJob):\n"
        "    combine = sum\n"
        "    def map(self, line):\n"
        "        yield wordlib.clean(line), 1\n"
    )
    (folder / "in.txt").write_text("A\na\n" * 20)
    (folder / "job.yaml").write_text(
        "job: clean.py:Clean\ninput: {path: in.txt}\nresources: {split_size: 4B}\n"
    )
    return folder


def test_a_package_that_no_node_has_is_named_before_any_attempt(user: Path, site: Path, cluster: Any) -> None:
    code, said, _ = run(user, "job.yaml", cluster, str(site))
    assert code == 1
    error = said["error"]
    assert error["code"] == "package-missing"
    assert "lacks the package wordlib, which the job imports" in error["message"]
    assert "-m pip install 'Word-Lib==1.2'" in error["cure"]
    assert (
        sum("lacks the package wordlib" in text for text in [error["message"], *error["details"].values()])
        == 2
    )


def test_a_node_that_lacks_a_package_takes_no_part(user: Path, site: Path) -> None:
    with cortex.LocalCluster(nodes=1) as cluster:
        usual = cluster._environment["PYTHONPATH"]
        cluster._environment["PYTHONPATH"] = os.pathsep.join([usual, str(site)])
        cluster.add_node()
        code, said, errors = run(user, "job.yaml", cluster, str(site))
        assert code == 0, (said, errors)
        assert said["rows"] == [["a", 40]]
        (note,) = said["report"]["notes"]
        assert "lacks the package wordlib, which the job imports: the job went on without it; on n" in note
        assert "pip install 'Word-Lib==1.2'" in note
        assert said["report"]["failed_attempts"] == 0


def test_another_version_of_a_package_is_named_when_code_cannot_be_loaded(
    user: Path, site: Path, tmp_path: Path
) -> None:
    old = install(tmp_path / "site-packages", "1.1", "def tidy(word):\n    return word\n")
    (user / "by_name.py").write_text((user / "clean.py").read_text().replace("import wordlib", FROM_WORDLIB))
    (user / "by_name.yaml").write_text("job: by_name.py:Clean\ninput: {path: in.txt}\n")
    with cortex.LocalCluster(nodes=1) as cluster:
        usual = cluster._environment["PYTHONPATH"]
        cluster._environment["PYTHONPATH"] = os.pathsep.join([usual, str(old)])
        cluster.add_node()
        code, said, _ = run(user, "by_name.yaml", cluster, str(site))
    assert code == 1
    error = said["error"]
    assert error["code"] == "user-code"
    assert "cannot be loaded in an executor" in error["message"]
    assert error["details"]["other versions"] == "Word-Lib 1.1 here, 1.2 at the client"
    assert "pip install 'Word-Lib==1.2'" in error["cure"]


FROM_WORDLIB = """from wordlib import clean
class wordlib:
    clean = staticmethod(clean)
"""


def test_a_module_that_is_no_package_is_to_be_listed(user: Path, cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "wordlib.py").write_text("def clean(word):\n    return word.lower()\n")
    code, said, _ = run(user, "job.yaml", cluster, str(tmp_path))
    assert code == 1
    assert f"modules: [{tmp_path}/wordlib.py] in the job, so that it travels along" in said["error"]["cure"]
    (user / "listed.yaml").write_text(
        f"job: clean.py:Clean\ninput: {{path: in.txt}}\nmodules: [{tmp_path}/wordlib.py]\n"
    )
    code, said, errors = run(user, "listed.yaml", cluster)
    assert code == 0, (said, errors)
    assert said["rows"] == [["a", 40]]
