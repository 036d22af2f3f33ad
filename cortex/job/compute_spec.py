"""What ``cortex compute`` is to do, as checked plain data: `cortex.job.compute_file` reads it from a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from cortex.job.argument_sources import ArgumentSource

ResponseMode = Literal["ordered", "stream", "collect", "none"]
RESPONSE_MODES: Final = ("ordered", "stream", "collect", "none")
ErrorMode = Literal["raise", "collect"]
ERROR_MODES: Final = ("raise", "collect")
ValueForm = Literal["json", "repr", "pickle"]
VALUE_FORMS: Final = ("json", "repr", "pickle")


@dataclass(frozen=True, slots=True)
class FunctionName:
    """Where a function is: `file`, absolute, or else the module of this dotted name."""

    file: str
    module: str
    name: str
    text: str
    """As the user wrote it."""


@dataclass(frozen=True, slots=True)
class ComputeOutput:
    """`path` is absolute; "": standard output."""

    path: str = ""
    values: ValueForm = "json"
    """What becomes of a result that JSON does not have: an error (json), its repr, or its pickle."""
    arguments: bool = False
    """Each line has the call's arguments as well."""
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class ComputeFile:
    path: str
    name: str
    function: FunctionName
    arguments: ArgumentSource
    mode: ResponseMode = "ordered"
    output: ComputeOutput = ComputeOutput()
    memory_bytes: int = 0
    slots: int = 0
    retries: int = 0
    timeout_s: float = 0.0
    """Of one call; 0: none."""
    errors: ErrorMode = "raise"
    files: tuple[tuple[str, str], ...] = ()
    modules: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    priority: int = 0


@dataclass(frozen=True, slots=True)
class ComputeOverrides:
    """What the command line says; None: the file's word stands. Paths are relative to the current folder."""

    mode: ResponseMode | None = None
    output: str | None = None
    overwrite: bool | None = None
    values: ValueForm | None = None
    memory_bytes: int | None = None
    slots: int | None = None
    retries: int | None = None
    timeout_s: float | None = None
    errors: ErrorMode | None = None
    priority: int | None = None
