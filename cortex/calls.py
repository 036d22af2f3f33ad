"""The calls of a `cortex.Client`: its compute job, opened with the first of them, and what it gives.

`Calls` holds what the job needs on this machine (the session's processes, or the way to the cluster; a folder
for large data) and ends all of it, be it closed, forgotten or left to the interpreter's end. Maps and futures
that are under way hold it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from cortex.call_functions import Functions
from cortex.class_spec import build_compute_spec
from cortex.client.attachments import FiledData, MemoryData
from cortex.client.bundle_packing import pack
from cortex.client.call_errors import CallError
from cortex.client.call_owners import CallNumbers
from cortex.client.call_run import CallOptions, CallRun
from cortex.client.compute_link import CallLink
from cortex.client.futures import CallExecutor, CallFuture, Submits, as_completed, broken
from cortex.client.nested_link import NestedCalls
from cortex.errors import UsageError
from cortex.ids import new_job_id
from cortex.job.overrides import parse_retries, parse_timeout
from cortex.limits import FAILURES_KEPT_MAX
from cortex.local_run import open_session, spill_folder
from cortex.private_folders import PrivateFolder, new_name, remove_left_over
from cortex.tasks.nested_calls import NestedLink, current
from cortex.units import counted
from cortex.user_code import executor_sys_path
from cortex.wire.messages import CallForm, CallPrinted, SubmitJob

if TYPE_CHECKING:
    from cortex.client.client import LocalSession
    from cortex.client.cluster_session import ClusterSession
    from cortex.config import Config

Errors = Literal["raise", "return", "collect"]
OnOutput = Callable[[str, CallPrinted], None]


@dataclass(frozen=True)
class CallCounts:
    """What `Client.for_each` did."""

    done: int
    """With those that failed."""
    failed: int = 0


@dataclass
class ClientOptions:
    """As the attributes of a job class."""

    name: str = ""
    memory: str | int = ""
    slots: int = 0
    priority: int = 0
    files: Any = ()
    modules: Any = ()
    env: dict[str, str] = field(default_factory=dict)


@dataclass
class _Opened:
    link: CallLink | NestedCalls
    functions: Functions
    submits: Submits


class Calls:
    """`on_output(function, printed)` is given the lines that calls print, in the link's thread. `nested`:
    inside a call, these are calls of the same job."""

    def __init__(
        self,
        config: Config,
        options: ClientOptions,
        on_output: OnOutput | None = None,
        nested: bool = True,
    ) -> None:
        self._nested = nested
        self._config = config
        self._options = options
        self._on_output: list[OnOutput | None] = [on_output]
        self._lock = threading.RLock()
        self._opened: _Opened | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None
        self._closed = False

    # --- results of many ---

    def run(
        self,
        function: Callable[..., Any],
        entries: Iterable[Any],
        length: int | None,
        star: bool,
        *,
        ordered: bool = True,
        discard: bool = False,
        timeout: float | str | None = None,
        retries: int = 0,
        form: CallForm | None = None,
    ) -> CallRun:
        """`form` beats `star`."""
        form = form or (CallForm.STAR if star else CallForm.ONE)
        timeout_s = 0.0 if timeout is None else parse_timeout(timeout)
        options = CallOptions(form, ordered, discard, timeout_s, parse_retries(retries))
        opened = self._open()
        return CallRun(opened.link, opened.functions.fresh(function), iter(entries), length, options, self)

    # --- one at a time ---

    def submit(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Future[Any]:
        opened = self._open()
        future = self._new_future()
        opened.submits.submit(*opened.functions.call(function, (args, kwargs)), future)
        return future

    def executor(self, max_workers: int | None) -> CallExecutor:
        if max_workers is not None and (type(max_workers) is not int or max_workers < 1):
            raise ValueError("max_workers must be greater than 0")
        opened = self._open()
        submits = Submits(opened.link, max_workers, broken)
        return CallExecutor(submits, opened.functions.call, lambda: CallFuture(opened.link, self))

    # --- the job ---

    @property
    def numbers(self) -> CallNumbers | None:
        """None before the first call."""
        return None if self._opened is None else self._opened.link.numbers

    @property
    def job(self) -> str:
        return "" if self._opened is None else self._opened.link.job

    def set_on_output(self, on_output: OnOutput | None) -> None:
        self._on_output[0] = on_output

    def close(self, cancel: bool = False) -> None:
        """End the job: when every submitted call has its result, or at once."""
        with self._lock:
            self._closed = True
            opened, finalizer = self._opened, self._finalizer
        if opened is None:
            return
        if cancel:
            opened.link.cancel()
        else:
            opened.submits.finish()
        if finalizer is not None:
            finalizer()
        opened.submits.leave()

    def as_completed(self, futures: Iterable[Future[Any]], timeout: float | None) -> Iterator[Future[Any]]:
        return as_completed(self._open().link, futures, timeout)

    def _new_future(self) -> Future[Any]:
        return CallFuture(self._open().link, self)

    def _open(self) -> _Opened:
        opened = self._opened
        if opened is not None and not self._closed:
            opened.link.check()  # before any lock: at a fork another thread may have had it
            return opened
        with self._lock:
            if self._closed:
                raise UsageError("this client is closed", cure="make another cortex.Client")
            if self._opened is None:
                link = current() if self._nested else None
                self._opened = self._begin() if link is None else _inside(link)
            return self._opened

    def _begin(self) -> _Opened:
        spec = build_compute_spec(self._options)
        with contextlib.ExitStack() as undo:
            session = open_session(spec.resources, self._config)
            undo.callback(session.close)
            home = spill_folder(self._config)
            remove_left_over(home)
            folder = PrivateFolder(new_name(home))
            undo.callback(folder.remove)
            local = session.shares_files
            request = SubmitJob(
                spec=spec,
                code=b"",
                sys_path=executor_sys_path() if local else (),
                staging_dir=folder.path if local else "",
                bundle=(packed := pack(spec.files, spec.modules)).bundle,
                job=new_job_id(),
            )
            store = FiledData(folder.path) if local else MemoryData(folder.path)
            link = CallLink(session, request, packed, store, _printer(self._on_output))
            self._finalizer = weakref.finalize(self, _end, os.getpid(), link, session, folder)
            opened = _Opened(link, Functions(request.job, local, spec.modules), Submits(link))
            undo.pop_all()  # from here on it is the finalizer's
            return opened


def _inside(nested: NestedLink) -> _Opened:
    """A client inside a call: its cells go by the executor's link."""
    link = NestedCalls(nested)
    functions = _functions_inside.get(nested)
    if functions is None:
        functions = _functions_inside[nested] = Functions(nested.job, nested.shares_files)
    return _Opened(link, functions, Submits(link))


_functions_inside: weakref.WeakKeyDictionary[NestedLink, Functions] = weakref.WeakKeyDictionary()
"""Of each worker: its calls may make a client each, for the same function."""


def _end(process: int, link: CallLink, session: LocalSession | ClusterSession, folder: PrivateFolder) -> None:
    if os.getpid() != process:
        return  # it is the process's that this one was forked from
    try:
        link.close()
    finally:
        session.close()
        folder.remove()


def _printer(on_output: list[OnOutput | None]) -> Callable[[CallPrinted, str], None]:
    """What fails in it is shown, as for a future's callback, and keeps no result from coming."""

    def printed(message: CallPrinted, name: str) -> None:
        hook = on_output[0] or _print
        try:
            hook(name, message)
        except Exception:
            traceback.print_exc()

    return printed


def _print(name: str, message: CallPrinted) -> None:
    tag = f"[{name} #{message.call}] "
    with contextlib.suppress(BrokenPipeError):  # its reader has seen enough; results have their own ways
        sys.stdout.write("".join(f"{tag}{line}\n" for line in message.text.splitlines()))
        sys.stdout.flush()


# --- results --------------------------------------------------------------------------------------


def results_of(run: CallRun, errors: Errors) -> Iterator[Any]:
    """What `errors` says: see `Client.map`. Raises UsageError for what it cannot say."""
    return _results(run, Failures(run.name, errors))


def _results(run: CallRun, failures: Failures) -> Iterator[Any]:
    for batch in run:
        if not batch.failures:
            yield from batch.values
            continue
        failed = {id(each) for each in batch.failures}
        for value in batch.values:
            if id(value) not in failed or failures.take(value):
                yield value
    failures.end()


def each_of(run: CallRun, errors: Errors, callback: Callable[[Any], object] | None) -> CallCounts:
    failures = Failures(run.name, errors)
    done = 0
    for batch in run:
        done += batch.count
        for each in batch.failures:
            failures.take(each)
        if callback is not None:
            failed = set() if errors == "return" else {id(each) for each in batch.failures}
            for value in batch.values:
                if id(value) not in failed:
                    callback(value)
    failures.end()
    return CallCounts(done, failures.count)


class Failures:
    """Of one map, by its `errors`."""

    def __init__(self, name: str, errors: Errors) -> None:
        if errors not in ("raise", "return", "collect"):
            raise UsageError(f"errors={errors!r}", cure="give 'raise', 'return' or 'collect'")
        self._name = name
        self._errors = errors
        self._kept: list[BaseException] = []
        self.count = 0

    def take(self, failed: CallError) -> bool:
        """True if it is to be handed out. Raises what the call raised, if that is what was asked for."""
        self.count += 1
        if self._errors == "raise":
            raise failed.exception
        if self._errors == "collect" and len(self._kept) < FAILURES_KEPT_MAX:
            self._kept.append(failed.exception)
        return self._errors == "return"

    def end(self) -> None:
        """Raises what was collected."""
        if not self._kept:
            return
        more = self.count - len(self._kept)
        what = f"{counted(self.count, 'call')} of {self._name} failed"
        if more:
            what += f", of which these are the first {len(self._kept)}"
        raise BaseExceptionGroup(what, self._kept)
