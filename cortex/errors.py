"""Typed errors: what went wrong, where, and the cure, in a form that survives a process boundary.

An error keeps its type until someone decides on it. Between processes it travels as an
`ErrorReport` (plain data, never a pickle) and `from_report` gives the same type back.

`Fault` is what the scheduler decides on:

* ``FATAL``  the same input gives the same error: stop the job now;
* ``TASK``   the attempt failed and may succeed again: one of the task's attempts is used up;
* ``LOST``   something that existed is gone (a run file, a node): redo what made it, no attempt used.
"""

from __future__ import annotations

import enum
from typing import Any, ClassVar

import msgspec


class Fault(enum.Enum):
    FATAL = "fatal"
    TASK = "task"
    LOST = "lost"


class ErrorReport(msgspec.Struct, frozen=True):
    """An error as plain data. `details` are shown one a line under the message, in order."""

    code: str
    message: str
    cure: str = ""
    details: dict[str, str] = {}
    fault: str = Fault.FATAL.value
    signature: str = ""
    """Equal for two errors that are the same failure (exception type and line); "" if unknown."""


EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


class CortexError(Exception):
    """Base of every error cortex raises on purpose.

    `message` says what happened and to what; `cure` what the user can do; `details` are named
    facts (file, offset, line, traceback ...) in the order to show them.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = EXIT_FAILED
    fault: ClassVar[Fault] = Fault.FATAL
    batch_row: int | None = None
    """Row of the batch at fault, set where the batch's place in its file is not known; not reported."""

    def __init__(
        self, message: str, *, cure: str = "", signature: str = "", details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure
        self.signature = signature
        self.details = {k: str(v) for k, v in (details or {}).items() if v is not None and v != ""}

    def report(self) -> ErrorReport:
        return ErrorReport(
            self.code, self.message, self.cure, dict(self.details), self.fault.value, self.signature
        )

    def __str__(self) -> str:
        lines = [self.message]
        for name, value in self.details.items():
            if "\n" in value:
                lines.append(f"  {name}:")
                lines.extend("    " + line for line in value.rstrip("\n").split("\n"))
            else:
                lines.append(f"  {name}: {value}")
        if self.cure:
            lines.append(f"  cure: {self.cure}")
        return "\n".join(lines)

    def __reduce__(self) -> Any:
        return from_report, (self.report(),)


class UsageError(CortexError):
    """The command, option or argument cannot be meant."""

    code, exit_code = "usage", EXIT_USAGE


class JobFileError(UsageError):
    """job.yaml or a job class is wrong; `message` lists every problem, one a line."""

    code = "job-file"


class ExpressionError(UsageError):
    """An expression cannot be parsed. Details: ``column`` (1-based) and ``expression`` with a caret."""

    code = "expression"

    @property
    def position(self) -> int:
        """0-based offset in the expression's text."""
        return int(self.details.get("column", "1")) - 1


class OutputExistsError(UsageError):
    code = "output-exists"


class MemoryTooSmall(UsageError):
    """The cap is too small to start in; the cure names the smallest that works."""

    code = "memory-too-small"


class InputError(CortexError):
    """Bad input: details hold file, byte offset, line text and cause."""

    code = "input"


class InputChanged(CortexError):
    """An input file's size, time or inode changed while the job read it."""

    code = "input-changed"


class InputLost(CortexError):
    """An input file lies on nodes that are all gone, or cannot be reached."""

    code, fault = "input-lost", Fault.LOST


class DataConflict(CortexError):
    """One name of the nodes' data stands for different contents on two nodes."""

    code = "data-conflict"


class ColumnError(CortexError):
    """A column that the job names does not exist, or has a type that the operation does not take."""

    code = "column"


class KeyTypeError(CortexError):
    """A key of a type that cannot be a key, or of another type than the job's other keys."""

    code = "key-type"


class ValueTypeError(CortexError):
    """Output values of different types in one column."""

    code = "value-type"


class OverflowedSum(CortexError):
    """An integer sum (or an integer expression) does not fit in 64 bits."""

    code = "overflow"


class DivisionByZero(CortexError):
    """An integer ``//`` or ``%`` by zero in an expression. (Of floats it is inf or nan, no error.)"""

    code = "division-by-zero"


class ConversionError(CortexError):
    """A value that ``int(x)`` or ``float(x)`` in an expression cannot convert."""

    code = "conversion"


class RecordTooLarge(CortexError):
    """A single record is larger than `record_bytes_max`."""

    code = "record-too-large"


class UserCodeError(CortexError):
    """The user's function raised; details hold its traceback (the user's frames), record and split."""

    code, fault = "user-code", Fault.TASK


class UserMemoryError(CortexError):
    """The user's own code needs more memory than the slot has."""

    code, fault = "user-memory", Fault.TASK


class ExecutorDied(CortexError):
    """An executor ended without a result: details hold signal, peak memory, split and last stderr."""

    code, fault = "executor-died", Fault.TASK


class TaskTimeout(CortexError):
    """A task made no progress for `task_silence_s_max`; details hold its stack."""

    code, fault = "task-timeout", Fault.TASK


class CorruptRun(CortexError):
    """A run file is missing, cut short or fails its checksum: the map that wrote it runs again."""

    code, fault = "corrupt-run", Fault.LOST


class FetchFailed(CortexError):
    """A segment could not be had from the node that holds it: the map that wrote it runs again.

    Details: ``attempt`` (of the map), ``partition`` and ``holder``; ``unreachable`` when nothing of the
    holder's could be had.
    """

    code, fault = "fetch-failed", Fault.LOST


class SpillFull(CortexError):
    """No space for spilled data; names the folder, the bytes and the cure."""

    code = "spill-full"


class TooManyOpenFiles(CortexError):
    """The process may not open more files: nothing is wrong with the one it wanted."""

    code = "open-files"


class SpillFailed(CortexError):
    """A disk failed to take spilled or fetched data, though it has room. Another node's may."""

    code, fault = "spill-failed", Fault.TASK


class OutputFailed(CortexError):
    """The output could not be written or committed."""

    code = "output"


class OutputUnseen(CortexError):
    """A node does not see the path that all nodes are to write the output to."""

    code = "output-unseen"


class ResultNotJson(CortexError):
    """A function's result is to be written as JSON, which does not have such values."""

    code = "result-not-json"


class ResultsLost(CortexError):
    """A finished part of the output is gone before the client had it: its node is lost, or its disk."""

    code = "results-lost"


class RowsLost(CortexError):
    """Rows or bytes between map output and reduce input do not add up. A bug, never shown as success."""

    code = "rows-lost"


class MapChanged(CortexError):
    """A map that ran again gave other rows than before, when reduces had already read the first ones."""

    code = "map-changed"


class Cancelled(CortexError):
    code, exit_code = "cancelled", EXIT_INTERRUPTED


class ProtocolError(CortexError):
    """A peer sent bytes that are no message, a message out of turn, or one over its limit."""

    code = "protocol"


class NotAllowed(ProtocolError):
    """A peer that is known sent what its role may not send, or is not (or no longer) of the cluster."""

    code = "not-allowed"


class NotTrusted(CortexError):
    """The other end could not prove who it is, or did not take our proof of who we are."""

    code = "not-trusted"


class JoinRefused(CortexError):
    """The server did not take a join: the token is unknown, expired, used up or revoked."""

    code = "join-refused"


class Unreachable(CortexError):
    """No connection: nobody listens there, or the way is blocked."""

    code = "unreachable"


class StateFailed(CortexError):
    """What a process must not lose could not be written to its home, or read from it."""

    code = "state"


class BundleTooLarge(UsageError):
    """More files than may travel with a job; details name the largest."""

    code = "bundle-too-large"


class BundleFailed(CortexError):
    """A node (or the server) could not take in the files that travel with a job."""

    code = "bundle"


class PutFailed(CortexError):
    """A part of a file that is put on nodes could not be kept: details name node, disk and cause."""

    code = "put"


class PartDamaged(PutFailed):
    """A part arrived with other bytes than it was sent with."""

    code = "part-damaged"


class DataIncomplete(CortexError):
    """A data name stands for a file that was put on nodes, and some of its parts are not there."""

    code = "data-incomplete"


class PackageMissing(CortexError):
    """A node lacks a package that the job's code imports; details name node and package."""

    code = "package-missing"


class ClusterFull(CortexError):
    """The cluster takes no further job now: of this user, or of anybody. The message says the cap."""

    code = "cluster-full"


class VersionMismatch(CortexError):
    code = "version-mismatch"


class ServerDied(CortexError):
    """The process that holds server and node ended; details hold its cause of death."""

    code = "server-died"


class InternalError(CortexError):
    """A bug in cortex: details hold the traceback."""

    code, fault = "internal", Fault.TASK


def _classes(base: type[CortexError]) -> list[type[CortexError]]:
    return [base, *(c for sub in base.__subclasses__() for c in _classes(sub))]


ERROR_CODES = frozenset(c.__dict__["code"] for c in _classes(CortexError) if "code" in c.__dict__)
"""Of all errors that there are."""


def from_report(report: ErrorReport) -> CortexError:
    """The error a report was made from; an unknown code becomes the base class."""
    for cls in _classes(CortexError):
        if cls.__dict__.get("code") == report.code:
            break
    else:
        cls = CortexError
    return cls(report.message, cure=report.cure, signature=report.signature, details=dict(report.details))
