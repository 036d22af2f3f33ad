"""A client's functions as they are sent: pickled with the user's own modules, as a job's code is.

Each map pickles its function anew. Submits of the same function, one after the other, share a pickle for as
long as nothing in it can have changed: it is imported by name, or what it uses of its module and its closure
are constants, modules and functions of which the same is true. Else it is pickled again for each submit, and
sent again if its bytes are others.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import pickle
import sys
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from cortex.client.call_run import Function
from cortex.client.futures import Arguments
from cortex.errors import UsageError
from cortex.imports_of_job import modules_beside
from cortex.job.travelling import module_name
from cortex.limits import FUNCTION_BYTES_MAX, FUNCTION_VARIANTS_MAX
from cortex.tasks.cell_pickles import Pickled, dump_list
from cortex.tasks.travelling_function import GivenFunction, TravellingFunction
from cortex.units import format_bytes
from cortex.user_code import (
    PickledCode,
    by_value_dumps,
    find_unpicklable,
    pickle_again,
    pickle_code,
)
from cortex.wire.messages import FunctionCode

_KEPT_MAX = 1000  # functions of which a pickle is kept: a loop may make a new one for each call
_ABSENT = object()


class Functions:
    """For one job. `modules` are its paths of modules that travel with it. Use from any thread."""

    def __init__(self, job: str, shares_files: bool, modules: Sequence[str] = ()) -> None:
        self._job = job
        self._shares_files = shares_files
        self._modules = tuple(modules)
        self._looked_for: dict[tuple[str, ...], tuple[int, PickledCode]] = {}
        """Modules of a function -> how many modules there were, and what was found for it."""
        self._variants: dict[object, set[str]] = {}
        """Code -> functions of it that were sent."""
        self._given: dict[str, Function] = {}
        self._kept: dict[int, tuple[weakref.ref[Any], list[Any] | None, PickledCode, Function]] = {}

    def fresh(self, function: Callable[..., Any]) -> Function:
        """As it is now. Raises UserCodeError naming what of it cannot be pickled, UsageError for what cannot
        be called."""
        if not callable(function):
            raise UsageError(f"{function!r} is no function", cure="give a function, then its arguments")
        return self._keep(function, self._pickled(function))

    def of(self, function: Callable[..., Any]) -> Function:
        """The same, cheaply."""
        kept = self._kept.get(id(function))
        if kept is None or kept[0]() is not function:
            return self.fresh(function)
        _, used, pickled, made = kept
        if used is not None:
            now = _used_by(function, pickled)
            if now is not None and len(now) == len(used) and all(map(_same, now, used)):
                return made
        again = pickle_again(function, pickled)
        return made if again.code == pickled.code else self._keep(function, again)

    def call(self, function: Callable[..., Any], arguments: Arguments) -> tuple[Function, Arguments]:
        """What to send for one call. A loop may make a function for each call: after some that differ in what
        they hold alone, they go as an argument of one that calls it, for functions are kept to the job's
        end."""
        made = self.of(function)
        inner = _innermost(function)
        if len(self._variants) >= _KEPT_MAX:
            self._variants.clear()
        seen = self._variants.setdefault(getattr(inner, "__code__", None) or inner, set())
        if made.code.function not in seen:
            if len(seen) >= FUNCTION_VARIANTS_MAX and made.given is not None:
                args, named = arguments
                return made.given(), ((function, *args), named)
            seen.add(made.code.function)
        return made, arguments

    def _pickled(self, function: Callable[..., Any]) -> PickledCode:
        """Which modules travel with it is looked for when others were imported since: that takes
        milliseconds, and a loop may make a function for each call."""
        names = _modules_of(function)
        loaded, before = self._looked_for.get(names, (0, None))
        if before is not None and loaded == len(sys.modules):
            with contextlib.suppress(Exception):  # then it is said below what is wrong
                return pickle_again(function, before)
        loaded = len(sys.modules)
        pickled = pickle_code(function, names, map(module_name, self._modules))
        self._looked_for[names] = loaded, pickled
        return pickled

    def _keep(self, function: Callable[..., Any], pickled: PickledCode) -> Function:
        made = self._function(function, pickled)
        try:
            ref = weakref.ref(function)
        except TypeError:
            return made
        if len(self._kept) >= _KEPT_MAX:
            self._kept.clear()
        self._kept[id(function)] = ref, _used_by(function, pickled), pickled, made
        return made

    def _function(self, function: Callable[..., Any], pickled: PickledCode) -> Function:
        sources = {}
        if not self._shares_files:
            beside = modules_beside(pickled.imports, pickled.roots, self._modules)
            sources = {name: _source(path) for name, path in beside.sources.items()}
        dumps = by_value_dumps(pickled.by_value)

        def dump(values: list[Any]) -> Pickled:
            return dump_list(values, dumps)

        name = _name_of(function)

        def given() -> Function:
            caller = self._code(name, TravellingFunction(pickle.dumps(GivenFunction(name), 5), sources))
            return self._given.setdefault(caller.function, Function(caller, dump, find_unpicklable))

        code = self._code(name, TravellingFunction(pickled.code, sources))
        return Function(code, dump, find_unpicklable, given)

    def _code(self, name: str, travelling: TravellingFunction) -> FunctionCode:
        code = travelling.encode()
        if len(code) > FUNCTION_BYTES_MAX:
            raise UsageError(
                f"the function {name} has {format_bytes(len(code))}, with the variables, globals and defaults"
                f" that it uses: at most {format_bytes(FUNCTION_BYTES_MAX)} can be sent",
                cure="give large data as an argument, which is not limited, or as a file (files=), or load it"
                " in the function",
            )
        return FunctionCode(self._job, hashlib.sha256(code).hexdigest()[:32], name, code)


def _source(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UsageError(
            f"{path}, which is to travel with the function, cannot be read: {error.strerror or error}",
            cure="check the path and its permissions",
        ) from error


def _name_of(function: Any) -> str:
    inner = _innermost(function)
    return str(getattr(inner, "__qualname__", None) or type(inner).__qualname__)


def _innermost(function: Any) -> Any:
    """What a partial, a bound method or a wrapper is of."""
    for _ in range(_KEPT_MAX):
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, types.MethodType):
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        else:
            break
    return function


def _modules_of(function: Any) -> tuple[str, ...]:
    inner = _innermost(function)
    names = [getattr(each, "__module__", None) for each in (inner, function, type(inner), type(function))]
    if isinstance(function, types.MethodType):
        names.append(type(function.__self__).__module__)
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str) and name != "builtins"))


# --- what may change ------------------------------------------------------------------------------


def _used_by(function: Any, pickled: PickledCode) -> list[Any] | None:
    """All that the pickle depends on, if none of it can change in itself; None if something can."""
    by_value = {"__main__", *(module.__name__ for module in pickled.by_value)}
    used: list[Any] = []
    return used if _collect(function, by_value, used, set()) else None


def _collect(value: Any, by_value: set[str], used: list[Any], seen: set[int]) -> bool:
    if value is None or type(value) in _CONSTANTS:
        used.append(value)
        return True
    if isinstance(value, types.ModuleType | types.BuiltinFunctionType):
        used.append(value)
        return (
            not isinstance(value, types.BuiltinFunctionType)
            or not hasattr(value.__self__, "__dict__")
            or (isinstance(value.__self__, types.ModuleType))
        )
    if isinstance(value, type):
        used.append(value)
        return value.__module__ not in by_value
    if not isinstance(value, types.FunctionType):
        return False
    used.append(value)
    if value.__module__ not in by_value or id(value) in seen:
        return True
    seen.add(id(value))
    if value.__dict__:
        return False
    parts: list[Any] = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    for cell in value.__closure__ or ():
        try:
            parts.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            return False
    used.append(value.__code__)
    for name in _names_in(value.__code__):
        found = value.__globals__.get(name, _ABSENT)
        if found is _ABSENT:
            used.append(_ABSENT)
        else:
            parts.append(found)
    return all(_collect(part, by_value, used, seen) for part in parts)


_CONSTANTS = frozenset({bool, int, float, complex, str, bytes})


def _same(one: Any, other: Any) -> bool:
    return one is other


@functools.lru_cache(maxsize=_KEPT_MAX)
def _names_in(code: types.CodeType) -> tuple[str, ...]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= set(_names_in(constant))
    return tuple(sorted(names))
