"""What a job's code imports: which modules travel, and which packages nodes must have."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cortex.imports_of_job import imports_in, modules_beside, needed_packages
from cortex.job.bundle import Package
from cortex.packages import executors_path, find
from cortex.user_code import load_object, pickle_code


@pytest.fixture(autouse=True)
def _restore_modules(tmp_path: Path) -> Iterator[None]:
    path = list(sys.path)
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    sys.path[:] = path


def function(source: str) -> Any:
    made: dict[str, Any] = {}
    exec(textwrap.dedent(source), made)
    return made["f"].__code__


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("import a.b", {"a.b"}),
        ("import a.b as c, d", {"a.b", "d"}),
        ("from a.b import c, d", {"a.b.c", "a.b.d"}),
        ("import a\n    yield a", {"a"}),
        ("with x:\n        import a", {"a"}),
        ("try:\n        import a\n    except ImportError:\n        a = None", set()),
        ("try:\n        x()\n    except ValueError:\n        import a", {"a"}),
        (
            "try:\n        import a\n    except ImportError:\n        a = None\n    import b\n    yield b",
            {"b"},
        ),
        ("for x in y:\n        import a", {"a"}),
        ("return [x for x in y]", set()),
        ("def g():\n        import a", set()),  # its own code is pickled as well
        ("from . import a", {"."}),
        ("from ..a import b", {"."}),
    ],
)
def test_imports_of_a_function(body: str, found: set[str]) -> None:
    assert imports_in(function(f"def f(x=0, y=()):\n    {body}\n")) == found


def test_a_function_with_many_names_and_constants() -> None:
    lines = [f"    v{n} = {n + 1000}; w{n}.x{n}" for n in range(400)]
    code = function("def f():\n" + "\n".join(lines) + "\n    from late.mod import name\n    import last\n")
    assert imports_in(code) == {"late.mod.name", "last"}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(
        tmp_path,
        {
            "one.py": "import two\nfrom pkg.sub import x\nimport fakedep\n",
            "two.py": (
                "from typing import TYPE_CHECKING\n"
                "if TYPE_CHECKING:\n    import onlytypes\n    import three\n"
                "try:\n    import optional\nexcept ImportError:\n    optional = None\n"
                "def late():\n    import four\n"
            ),
            "three.py": "",
            "four.py": "import needed.deep\n",
            "unused.py": "import never",
            "pkg/__init__.py": "from . import sub",
            "pkg/sub/__init__.py": "from ..other import y",
            "pkg/other.py": "import frompkg",
            "pkg/data.bin": "",
            "pkg/__pycache__/old.py": "",
            "plain/mod.py": "",
            "json.py": "",
            "numpy/__init__.py": "",
            "broken.py": "import (",
        },
    )
    return tmp_path


def test_modules_beside_are_reached_through_each_other(root: Path) -> None:
    found = modules_beside(["one.f"], [str(root)], [])
    assert sorted(found.sources) == [
        "four.py", "one.py", "pkg/__init__.py", "pkg/other.py", "pkg/sub/__init__.py", "three.py", "two.py",
    ]  # fmt: skip
    assert found.sources["pkg/other.py"] == str(root / "pkg" / "other.py")
    # What is in a `try` or an `if` is no need; `typing` is looked at by `needed_packages`.
    needed = {name for name in found.imports if not name.startswith("typing")}
    assert needed == {"fakedep", "needed.deep", "frompkg"}


def test_what_every_node_has_does_not_travel(root: Path) -> None:
    assert modules_beside(["json.dumps", "numpy.array", "cortex.api"], [str(root)], []).sources == {}


def test_a_folder_without_init_travels_unless_a_package_has_its_name(root: Path, tmp_path: Path) -> None:
    sys.path.insert(0, str(root))
    assert list(modules_beside(["plain.mod"], [str(root)], []).sources) == ["plain/mod.py"]
    write(tmp_path / "site", {"plain/__init__.py": ""})
    sys.path.append(str(tmp_path / "site"))
    assert modules_beside(["plain.mod"], [str(root)], []).sources == {}


def test_listed_modules_bring_what_stands_beside_them(root: Path, tmp_path: Path) -> None:
    found = modules_beside(["one.f", "x.y"], [], [str(root / "one.py")])
    assert "one.py" not in found.sources
    assert "two.py" in found.sources
    assert "x.y" in found.imports
    assert not any(name.startswith("one") for name in found.imports)


def test_a_file_that_is_no_python_travels_as_it_is(root: Path) -> None:
    assert list(modules_beside(["broken"], [str(root)], []).sources) == ["broken.py"]


# --- what pickles refer to ---


def test_what_a_pickle_refers_to_is_found(root: Path) -> None:
    write(
        root,
        {
            "job_of_imports.py": (
                "import decimal\nimport fakelib.deep\nimport helper_of_imports\nimport threading\n"
                "import cortex\n"
                "LIB = fakelib.deep\n"
                "class Job(cortex.MapReduceJob):\n"
                "    made = fakelib.deep.Thing()\n"
                "    def map(self, record):\n"
                "        yield helper_of_imports.double(record), decimal.Decimal(1)\n"
                "    def reduce(self, key, values):\n"
                "        def inner():\n"
                "            import lazylib\n"
                "        import four\n"
                "        yield LIB.name, inner\n"
            ),
            "helper_of_imports.py": (
                "import otherlib\ndef double(x):\n    import fromhelper\n    return otherlib.two * x\n"
            ),
            "site-packages/fakelib/__init__.py": "",
            "site-packages/fakelib/deep.py": "name = 1\nclass Thing:\n    pass\n",
            "site-packages/otherlib.py": "two = 2",
        },
    )
    sys.path.append(str(root / "site-packages"))
    job = load_object(f"{root}/job_of_imports.py:Job")()
    pickled = pickle_code(job)
    tops = {name.partition(".")[0] for name in pickled.imports}
    assert {"fakelib", "otherlib", "lazylib", "fromhelper", "four", "decimal"} <= tops
    assert not tops & {"job_of_imports", "helper_of_imports", "threading", "__main__"}
    assert pickled.roots == (f"{root}/",)
    # A helper that is listed is imported, not pickled by value.
    listed = pickle_code(job, (), ["helper_of_imports"])
    assert b"fromhelper" in pickled.code
    assert b"fromhelper" not in listed.code
    assert "helper_of_imports" in {name.partition(".")[0] for name in listed.imports}


def test_a_function_that_imports_from_its_own_package_has_it_along(root: Path) -> None:
    write(
        root,
        {
            "own/__init__.py": "",
            "own/job.py": (
                "import cortex\n"
                "class Job(cortex.MapReduceJob):\n"
                "    def map(self, record):\n"
                "        from . import later\n"
                "        yield later, 1\n"
            ),
            "own/later.py": "",
        },
    )
    sys.path.insert(0, str(root))
    import own.job  # type: ignore[import-not-found]

    pickled = pickle_code(own.job.Job())
    travelling = modules_beside(pickled.imports, pickled.roots, [])
    assert sorted(travelling.sources) == ["own/__init__.py", "own/job.py", "own/later.py"]


# --- packages ---


@pytest.fixture
def site(tmp_path: Path) -> Path:
    site = tmp_path / "site-packages"
    for name, version, files in [
        ("Alpha-Lib", "1.0", ["alpha/__init__.py", "alpha/sub.py"]),
        ("cloud-one", "2.0", ["sharedns/one/__init__.py"]),
        ("cloud-two", "3.0", ["sharedns/two/__init__.py", "sharedns/deep/three.py"]),
        ("single", "0.1", ["singlemod.py"]),
        ("inwork", "0.1", ["inwork/__init__.py"]),
    ]:
        write(site, dict.fromkeys(files, "raise SystemExit  # it is never imported\n"))
        info = f"{name.replace('-', '_')}-{version}.dist-info"
        record = "\n".join(f"{file},," for file in files)
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        write(site, {f"{info}/METADATA": metadata, f"{info}/RECORD": record})
    url = '{"url": "file:///home/me/inwork", "dir_info": {"editable": true}}'
    write(site, {"inwork-0.1.dist-info/direct_url.json": url})
    write(tmp_path / "loose", {"loosemod.py": ""})
    sys.path[:] = [*sys.path, str(site), str(tmp_path / "loose")]
    return site


def test_packages_are_named_as_pip_installs_them(site: Path) -> None:
    imports = [
        "alpha.sub.f", "alpha", "sharedns.two.x", "sharedns.deep.three", "singlemod.f", "loosemod.x",
        "json.dumps", "numpy.array", "nowhere.at.all", "__main__", "sharedns", "a-b.c", "inwork",
    ]  # fmt: skip
    assert needed_packages(imports) == (
        Package("alpha", "Alpha-Lib==1.0"),
        Package("inwork", "", str(site / "inwork")),
        Package("loosemod", "", str(site.parent / "loose" / "loosemod.py")),
        Package("sharedns.deep.three", "cloud-two==3.0"),
        Package("sharedns.two", "cloud-two==3.0"),
        Package("singlemod", "single==0.1"),
    )
    assert needed_packages(["json", "os.path"]) == ()


def test_modules_are_found_without_importing_them(site: Path) -> None:
    shared = find("sharedns", sys.path)
    assert shared is not None
    assert shared.shared
    assert find("alpha.sub", sys.path) is not None
    assert find("alpha.nothing", sys.path) is None
    assert find("alpha.sub.below", sys.path) is None
    assert find("sharedns.two", [str(site)]) is not None
    assert find("alpha", []) is None  # on another path it is not there
    assert find("sys", []) is not None
    assert not {"alpha", "sharedns"} & sys.modules.keys()
    assert executors_path() in (sys.path, sys.path[1:])
