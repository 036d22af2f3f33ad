"""Loading user code by name, and turning it into the bytes that executors unpickle.

``wordcount.py:WordCount`` names a class (or function) in a file. The file becomes an ordinary module: its
folder is on ``sys.path``, so that helper modules beside it import as they do in a script.

Pickled *by value* (their code travels): classes and closures of ``__main__`` and notebooks, the job's own
module, and modules that stand beside it (a file under the script's folder, not in site-packages), unless what
they hold cannot be pickled. All else is pickled by reference and imported by the executor, whose ``sys.path``
is a copy of this process's.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import io
import os
import pickle
import sys
import sysconfig
import threading
import traceback
import types
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from operator import attrgetter
from typing import Any, cast

from cortex.errors import UsageError, UserCodeError
from cortex.imports_of_job import imports_in
from cortex.job.overrides import current_folder, utf8_path
from cortex.tasks.code_names import cached, named

_PACKAGE_FOLDER = os.path.dirname(os.path.abspath(__file__))
BufferCallback = Callable[[pickle.PickleBuffer], bool]
_PICKLING = threading.RLock()  # cloudpickle's registry of modules by value is global; pickling runs user code


# --- loading --------------------------------------------------------------------------------------


def split_target(target: str) -> tuple[str, str]:
    """``folder/wordcount.py:WordCount`` -> its two halves. Raises UsageError if it is no such thing."""
    path, colon, name = target.rpartition(":")
    named = all(part.isidentifier() for part in name.split("."))
    if not colon or not path.endswith(".py") or not named:
        raise UsageError(
            f"{target!r} does not name user code", cure="write file.py:Name, such as wordcount.py:WordCount"
        )
    return path, name


def load_object(target: str, folder: str = "") -> Any:
    """The object that ``file.py:Name`` names; a relative file is looked up in `folder` (else here).

    Raises UsageError (no such file or name) and UserCodeError (the file fails when imported).
    """
    path, name = split_target(target)
    module = load_module(os.path.join(folder or current_folder(), os.path.expanduser(path)))
    try:
        return attrgetter(name)(module)
    except AttributeError:
        public = [n for n in vars(module) if not n.startswith("_")]
        close = get_close_matches(name, public, 1)
        own = [n for n in public if getattr(vars(module)[n], "__module__", None) == module.__name__]
        known = ", ".join(own) or "nothing"
        raise UsageError(
            f"{path} defines no {name!r}",
            cure=f"did you mean {close[0]!r}?" if close else f"it defines {known}",
        ) from None


def make_importable(modules: Iterable[str]) -> None:
    """Let user code import the modules at these paths by name, as it does in executors."""
    for path in modules:
        folder = os.path.dirname(path)
        if folder not in sys.path:
            sys.path.append(folder)


def load_module(path: str) -> types.ModuleType:
    """Import a Python file as a module that stays in ``sys.modules``; the same file is loaded once."""
    path = utf8_path(os.path.realpath(path))
    if not os.path.isfile(path):
        folder = os.path.dirname(path)
        nearby = [n for n in os.listdir(folder) if n.endswith(".py")] if os.path.isdir(folder) else []
        close = get_close_matches(os.path.basename(path), nearby, 1)
        raise UsageError(
            f"{path}: no such file", cure=f"did you mean {close[0]}?" if close else "check the path"
        )
    folder = os.path.dirname(path)
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as `python file.py` does
    name = _module_name(path)
    loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: its classes may look their module up
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        del sys.modules[name]
        raise
    except BaseException as error:  # SystemExit too: a script without a __main__ guard
        del sys.modules[name]
        raise _import_failed(path, error) from error
    return module


def _module_name(path: str) -> str:
    """The file's stem, unless another module already has, or would be found under, that name."""
    stem = os.path.splitext(os.path.basename(path))[0]
    unique = f"{stem}_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    if not stem.isidentifier():
        return unique
    if stem in sys.modules:
        return stem if _same_file(sys.modules[stem], path) else unique
    if stem in sys.builtin_module_names or stem in sys.stdlib_module_names:
        return unique
    return stem


def _same_file(module: types.ModuleType, path: str) -> bool:
    file = getattr(module, "__file__", None)
    return bool(file) and os.path.realpath(cast(str, file)) == path


def _import_failed(path: str, error: BaseException) -> UserCodeError | UsageError:
    if isinstance(error, SystemExit):
        return UsageError(
            f"{path} ended the program while it was loaded",
            cure='put what it runs under  if __name__ == "__main__":',
        )
    return UserCodeError(
        f"{path} cannot be imported: {_one_line(error)}",
        cure="run it with python to see the same error",
        details={"traceback": user_traceback(error)},
    )


def user_traceback(error: BaseException) -> str:
    """The traceback without the frames of cortex and of the import machinery."""
    kept = traceback.TracebackException.from_exception(error)
    part: traceback.TracebackException | None = kept
    while part is not None:
        part.stack = traceback.StackSummary.from_list([f for f in part.stack if not _is_ours(f.filename)])
        part = part.__cause__ or part.__context__
    return "".join(kept.format())


def _is_ours(filename: str) -> bool:
    return filename.startswith(("<frozen importlib", _PACKAGE_FOLDER + os.sep))


def _one_line(error: BaseException) -> str:
    return "".join(traceback.format_exception_only(error)[-1:]).strip()


# --- pickling -------------------------------------------------------------------------------------


def executor_sys_path() -> tuple[str, ...]:
    """This process's import path, absolute, for executors to import the same modules from.

    Raises UsageError for a folder in it with a name that is not UTF-8.
    """
    paths = (os.path.abspath(p) for p in sys.path)  # "" is the current folder
    cure = "rename the folder, or take it out of sys.path (PYTHONPATH; the current folder in a notebook)"
    found = dict.fromkeys(p for p in paths if os.path.exists(p))
    return tuple(utf8_path(p, "a folder that modules are imported from", cure) for p in found)


@dataclass(frozen=True)
class PickledCode:
    """Code as executors unpickle it, and what they import for it."""

    code: bytes
    imports: frozenset[str]
    """Dotted names: modules that the pickle refers to, and what its functions import when they run."""
    roots: tuple[str, ...]
    """Folders that the job's own modules are imported from."""
    by_value: tuple[types.ModuleType, ...] = ()
    """Modules whose code travels in the pickle, besides ``__main__``."""


def dump_code(code: Any, module_names: tuple[str, ...] = ()) -> bytes:
    """The bytes of `pickle_code`."""
    return pickle_code(code, module_names).code


def pickle_code(code: Any, module_names: tuple[str, ...] = (), by_import: Iterable[str] = ()) -> PickledCode:
    """`code` as a cloudpickle; `module_names` are modules of the job besides its class's own, `by_import`
    those (with what is in them) that executors import, wherever they stand.

    Raises UserCodeError naming the attribute or closure variable that cannot be pickled.
    """
    own = {type(code).__module__, *module_names}
    imported = frozenset(by_import)
    modules = [m for m in _modules_by_value(own) if m.__name__.partition(".")[0] not in imported]
    # of a package that is run by ``python -m`` the modules have another root than ``__main__``
    roots = tuple(sorted(_roots({*own, *(module.__name__ for module in modules)})))
    with _PICKLING:
        with _by_value(modules):
            try:
                return _pickled(code, modules, roots)
            except Exception as error:
                cause, failed = error, _cannot_pickle(code, error)
        # A helper may hold what cannot be pickled, such as a lock: then executors import the helpers.
        only_own = [module for module in modules if module.__name__ in own]
        with _by_value(only_own):
            try:
                return _pickled(code, only_own, roots)
            except Exception:
                raise failed from cause


def _pickled(code: Any, by_value: Sequence[types.ModuleType], roots: tuple[str, ...]) -> PickledCode:
    imports: set[str] = set()
    pickled = _dumps(code, imports)
    if "." in imports:  # a function imports from its own package, which need be there
        imports.discard(".")
        imports.update(module.__name__.partition(".")[0] for module in by_value)
    return PickledCode(pickled, frozenset(imports - {"__main__"}), roots, tuple(by_value))


def pickle_again(code: Any, before: PickledCode) -> PickledCode:
    """The same as `before`, as it is now: modules are not looked for anew. Raises what pickling raises."""
    with _PICKLING, _by_value(before.by_value):
        return _pickled(code, before.by_value, before.roots)


def by_value_dumps(modules: Sequence[types.ModuleType]) -> Callable[[Any, BufferCallback], bytes]:
    """How values are pickled that go with code of which `modules` travel by value: their classes do so as
    well, so that code and values mean the same ones. It raises whatever pickling raises."""

    def dumps(value: Any, buffers: BufferCallback) -> bytes:
        if not modules:
            return _dumps(value, None, buffers)
        with _PICKLING, _by_value(modules):
            return _dumps(value, None, buffers)

    return dumps


@contextlib.contextmanager
def _by_value(modules: Iterable[types.ModuleType]) -> Iterator[None]:
    cloudpickle: Any = import_module("cloudpickle")  # untyped
    registered = []
    try:
        for module in modules:
            if module.__name__ not in cloudpickle.list_registry_pickle_by_value():
                cloudpickle.register_pickle_by_value(module)
                registered.append(module)
        yield
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)


def _dumps(
    value: Any,
    imports: set[str] | None = None,
    buffer_callback: BufferCallback | None = None,
) -> bytes:
    """The pickle; what unpickling and running it will import is added to `imports`."""
    buffer = io.BytesIO()
    pickler = _pickler()(buffer, protocol=5, buffer_callback=buffer_callback)
    pickler.imports = set() if imports is None else imports
    pickler.dump(value)
    return buffer.getvalue()


@functools.cache
def _pickler() -> Any:
    """cloudpickle's pickler, with the file names of code kept (see `cortex.tasks.code_names`), and with a
    set `imports` that it adds the names of modules to."""
    cloudpickle: Any = import_module("cloudpickle")  # untyped, and slow to import
    usual = cloudpickle.CloudPickler.dispatch_table

    def reduce_code(code: types.CodeType) -> tuple[Any, ...]:
        make, arguments = usual[types.CodeType](code)
        return named, (code.co_filename, make, arguments)

    def by_value(module: str | None) -> bool:
        """Whether it need not be imported by executors: what is in it goes as what it is made of."""
        registered = cloudpickle.list_registry_pickle_by_value()
        return module == "__main__" or any(f"{module}.".startswith(f"{each}.") for each in registered)

    def reducer_override(self: Any, value: Any) -> Any:
        if isinstance(value, _CACHED) and by_value(value.__module__):  # it would be looked up by its name
            return cached, (value.__wrapped__, *value.cache_parameters().values())
        made = cloudpickle.CloudPickler.reducer_override(self, value)
        if isinstance(value, types.CodeType):
            self.imports |= imports_in(value)
        elif isinstance(value, types.ModuleType):
            if not by_value(value.__name__):  # a function may import it all the same, by a statement
                self.imports.add(value.__name__)
        elif made is NotImplemented and isinstance(value, _GLOBALS):
            self.imports.add(str(value.__module__))
        return made

    table = ChainMap({types.CodeType: reduce_code}, usual)
    members = {"dispatch_table": table, "reducer_override": reducer_override}
    return type("_Pickler", (cloudpickle.CloudPickler,), members)


_CACHED = type(functools.cache(len))
_GLOBALS = (type, types.FunctionType, types.BuiltinFunctionType)
"""What pickles name by their module and their own name."""


def _roots(names: set[str]) -> set[str]:
    """The folders that these modules are imported from, but for what is installed."""
    roots = set()
    for name in names:
        module = sys.modules.get(name)
        folder = _root_folder(module) if module is not None else None
        if folder is not None and not _is_installed(os.path.join(folder, "")):
            roots.add(os.path.join(folder, ""))
    return roots


def _modules_by_value(names: set[str]) -> list[types.ModuleType]:
    """The modules of the job and those that stand beside them."""
    roots = _roots(names)
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name == "__main__" or not isinstance(module, types.ModuleType) or not isinstance(file, str):
            continue  # cloudpickle always takes __main__ by value
        path = os.path.realpath(file)
        beside = any(path.startswith(root) for root in roots)
        if beside and path.endswith(".py") and module.__name__ == name and not _is_installed(path):
            found.append(module)
    return found


def _root_folder(module: types.ModuleType) -> str | None:
    """The folder a module (or its top package) is imported from; here for a notebook."""
    file = getattr(module, "__file__", None)
    if not isinstance(file, str):
        return os.getcwd() if module.__name__ == "__main__" else None
    path = os.path.realpath(file)
    up = module.__name__.count(".") + (os.path.basename(path) == "__init__.py")
    for _ in range(up + 1):
        path = os.path.dirname(path)
    return path


def _is_installed(path: str) -> bool:
    """True for the standard library, site-packages and cortex itself."""
    return "site-packages" in path or "dist-packages" in path or path.startswith(_installed_folders())


def _installed_folders() -> tuple[str, ...]:
    library = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(os.path.join(os.path.realpath(p), "") for p in [*library, _PACKAGE_FOLDER] if p)


def _cannot_pickle(code: Any, error: Exception) -> UserCodeError:
    where = find_unpicklable(code)
    made = "in the function, which" if isinstance(code, types.FunctionType) else "in setup(), which"
    return UserCodeError(
        f"{where or _name_of(code)} cannot be sent to the executors: {_one_line(error)}",
        cure=f"make it {made} runs in each executor, or keep what is needed to make it again",
    )


def _name_of(code: Any) -> str:
    return code.__qualname__ if isinstance(code, types.FunctionType) else type(code).__name__


def find_unpicklable(code: Any) -> str:
    """What inside a job object cannot be pickled, as the user would write it; "" if all of it can."""
    if _pickles(code):
        return ""
    return _search(code, _name_of(code), 6, set())


def _search(value: Any, name: str, depth: int, seen: set[int]) -> str:
    """`name` of the innermost part of `value` (which does not pickle) that is to blame."""
    if depth == 0 or id(value) in seen:
        return name
    seen.add(id(value))
    for part_name, part in _parts(value, name):
        if not _pickles(part):
            return _search(part, part_name, depth - 1, seen)
    return name


def _parts(value: Any, name: str) -> list[tuple[str, Any]]:
    if isinstance(value, types.FunctionType):
        parts = []
        for variable, cell in zip(value.__code__.co_freevars, value.__closure__ or ()):
            try:
                parts.append((f"the variable {variable!r} that {name} uses", cell.cell_contents))
            except ValueError:  # not assigned yet: nothing to pickle
                continue
        used = _global_names(value.__code__)
        found = sorted(used & set(value.__globals__))
        parts += [(f"the global {n!r} that {name} uses", value.__globals__[n]) for n in found]
        return parts + [(f"a default of {name}", d) for d in value.__defaults__ or ()]
    if isinstance(value, types.MethodType):
        return [(name, value.__func__), (name, value.__self__)]
    if isinstance(value, (staticmethod, classmethod)):
        return [(name, value.__func__)]
    if isinstance(value, property):
        return [(name, f) for f in (value.fget, value.fset) if f is not None]
    if isinstance(value, dict):
        return [(f"{name}[{k!r}]", v) for k, v in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [(f"{name}[{i}]", v) for i, v in enumerate(value)]
    if isinstance(value, type):
        file = getattr(sys.modules.get(value.__module__), "__file__", None) or ""
        if value.__module__ == "builtins" or _is_ours(file):
            return []
        own = [(f"{value.__name__}.{n}", v) for n, v in vars(value).items() if n not in _CLASS_OWN]
        return own + [(base.__name__, base) for base in value.__bases__]
    attributes = [(f"{name}.{n}", v) for n, v in getattr(value, "__dict__", {}).items()]
    return [*attributes, (type(value).__name__, type(value))]


_CLASS_OWN = frozenset({"__dict__", "__weakref__", "__module__", "__qualname__", "__doc__"})


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _pickles(value: Any) -> bool:
    try:
        _dumps(value)
    except Exception:  # whatever it raises, the answer is no; the first error was reported already
        return False
    return True
