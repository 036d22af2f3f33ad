"""A function on its way from a client to executors: its pickle, and sources it imports that are not there.

The client makes it (`FunctionCode.code`); executors lay the sources out in a folder and unpickle it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import cloudpickle
import msgspec

from cortex.errors import CortexError, ProtocolError, UserCodeError
from cortex.tasks.user_errors import USER_EXCEPTIONS, load_error


class TravellingFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    function: bytes
    """cloudpickle of a callable."""
    modules: dict[str, bytes] = {}
    """Path, as in ``helpers/__init__.py``, -> source: of modules that it imports and that executors have not
    got."""

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)


class GivenFunction:
    """A function that calls what it is given first: one for many that are called once each. `name` is theirs,
    for people."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)


def load_function(code: bytes, name: str, modules_folder: str) -> Callable[..., Any]:
    """The callable. Only ever in an executor. `modules_folder` is the job's, on this node. UserCodeError if
    it cannot be had."""
    try:
        travelling = msgspec.msgpack.decode(code, type=TravellingFunction)
    except msgspec.DecodeError as error:
        raise ProtocolError(
            f"the code of {name} is no function: {error}",
            cure="client and node must be the same version of cortex",
        ) from error
    try:
        if travelling.modules:
            _enter(_laid_out(travelling.modules, modules_folder), travelling.modules)
        function = cloudpickle.loads(travelling.function)
    except (CortexError, MemoryError):
        raise
    except USER_EXCEPTIONS as error:
        raise load_error(f"the function {name}", error) from error
    if not callable(function):
        raise UserCodeError(f"{name} is a {type(function).__name__}, which cannot be called")
    loaded: Callable[..., Any] = function
    return loaded


def _laid_out(modules: dict[str, bytes], parent: str) -> str:
    """The folder that holds exactly these, named by what they are: executors of a node share it."""
    digest = hashlib.sha256(msgspec.msgpack.encode(sorted(modules.items()))).hexdigest()[:32]
    folder = os.path.join(parent, f"modules-{digest}")
    if os.path.isdir(folder):
        return folder
    made = tempfile.mkdtemp(prefix="modules-", dir=parent)
    for path, source in modules.items():
        target = os.path.normpath(os.path.join(made, path))
        if not target.startswith(made + os.sep):
            raise ProtocolError(f"a module's path leads out of its folder: {path!r}")
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as file:
            file.write(source)
    try:
        os.rename(made, folder)
    except OSError:  # another executor was first
        shutil.rmtree(made)
        if not os.path.isdir(folder):
            raise
    return folder


def _enter(folder: str, modules: dict[str, bytes]) -> None:
    """Modules are imported from there from now on: another edition of one, that came before, is forgotten."""
    if folder in sys.path:
        return
    sys.path.insert(0, folder)
    parent = os.path.join(os.path.dirname(folder), "modules-")
    for path in modules:
        name = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        file = getattr(sys.modules.get(name), "__file__", None)
        if isinstance(file, str) and file.startswith(parent):
            del sys.modules[name]
