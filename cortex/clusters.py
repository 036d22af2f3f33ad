"""A cluster from Python: `Client` for one that there is, `LocalCluster` for one of processes on this machine.

client = cortex.Client("head:8786")
counts = WordCount(input="/shared/docs/*.txt").run(client)

with cortex.LocalCluster(nodes=3) as cluster:          # tests and notebooks: real processes, real TLS
    counts = WordCount(input="docs/*.txt").run(cluster)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cortex.client.embedded_start import child_environment
from cortex.config import Config, load_config
from cortex.errors import CortexError, InternalError, UsageError
from cortex.limits import CLUSTER_START_S_MAX, MIB, NODE_EXIT_S_MAX, STDERR_TAIL_BYTES

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

    from cortex.calls import CallCounts, Calls, Errors
    from cortex.client.call_owners import CallNumbers
    from cortex.client.call_run import CallRun
    from cortex.job_handle import JobHandle
    from cortex.wire.messages import CallPrinted, ClusterStatus

_LOOK_S = 0.05


class Client:
    """Calls of functions on this machine or on a cluster, and the way to a cluster for jobs.

    It is of the cluster whose server is at `server` ("HOST:PORT"; default: CORTEX_SERVER), else of this
    machine. `home` is the folder with the identity to show (default: CORTEX_HOME). Its calls are one job of
    the cluster, which begins with the first of them and ends with the ``with`` block, or `close`: `name`,
    `memory`, `slots`, `priority`, `files`, `modules` and `env` are that job's, as a job class has them.

    Jobs, and questions such as `status`, have a connection each, calls one together. Use from any thread. Not
    from a process that is forked off while it has calls: such a process makes a client of its own. Inside a
    function that is being called, a client is the way to the same executors.
    """

    def __init__(
        self,
        server: str = "",
        *,
        home: str | os.PathLike[str] | None = None,
        memory: str | int = "",
        slots: int = 0,
        name: str = "",
        priority: int = 0,
        files: Mapping[str, str] | Sequence[str | os.PathLike[str]] | str = (),
        modules: Sequence[str | os.PathLike[str]] | str = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.config: Config = load_config(
            home=None if home is None else os.fspath(home), server=server or None
        )
        if server:
            from cortex.wire.join import parse_endpoint

            parse_endpoint(server, "the server")
        self._options: dict[str, Any] = {
            "name": name or os.path.basename(sys.argv[0]) or "python",
            "memory": memory,
            "slots": slots,
            "priority": priority,
            "files": files,
            "modules": modules,
            "env": dict(env or {}),
        }
        self._nested = not server
        """Inside a call: these are calls of the same job, and not of another cluster."""
        self._made_calls: Calls | None = None
        self._making = threading.Lock()
        self._closed = False

    # --- calls ---

    def map(
        self,
        function: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | str | None = None,
        retries: int = 0,
        errors: Errors = "raise",
    ) -> Iterator[Any]:
        """``function(x)`` for each x (``function(x, y)`` with two iterables, up to the end of the shorter),
        in order, as they become ready.

        Arguments are taken as executors can use them, by the thread that takes the results: an endless
        iterable is fine, and results that are not taken hold it back. `timeout`: seconds of one call, whose
        executor is then replaced. `retries`: how often a call that fails is tried again. `errors`: ``raise``
        ends with what the first failing call raised; ``return`` gives a `CallError` in its place; ``collect``
        gives the others, and raises all failures as an ExceptionGroup at the end.

        Calls may run more than once where an executor or a machine is lost; each result comes once. An
        iterator that is closed, or dropped, drops what has not begun.
        """
        if not iterables:
            raise UsageError("map needs something to call the function with", cure="give an iterable")
        if len(iterables) == 1:
            return self._results(function, iterables[0], True, errors, timeout, retries)
        lengths = [_length(each) for each in iterables]
        known = [each for each in lengths if each is not None]
        length = min(known) if len(known) == len(lengths) else None
        zipped = zip(*iterables)
        return self._results(function, zipped, True, errors, timeout, retries, length, star=True)

    def imap_unordered(
        self,
        function: Callable[..., Any],
        iterable: Iterable[Any],
        *,
        timeout: float | str | None = None,
        retries: int = 0,
        errors: Errors = "raise",
    ) -> Iterator[Any]:
        """As `map`, in the order in which calls end."""
        return self._results(function, iterable, False, errors, timeout, retries)

    def starmap(
        self,
        function: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        *,
        timeout: float | str | None = None,
        retries: int = 0,
        errors: Errors = "raise",
    ) -> Iterator[Any]:
        """As `map`: ``function(*xs)`` for each xs."""
        return self._results(function, iterable, True, errors, timeout, retries, star=True)

    def for_each(
        self,
        function: Callable[..., Any],
        iterable: Iterable[Any],
        *,
        callback: Callable[[Any], object] | None = None,
        timeout: float | str | None = None,
        retries: int = 0,
        errors: Errors = "raise",
    ) -> CallCounts:
        """``function(x)`` for each x; ``callback(result)`` for each result, here, in the order in which calls
        end. Without a callback results stay where they are made: calls are only counted."""
        from cortex.calls import each_of

        run = self._run(function, iterable, False, timeout, retries, discard=callback is None)
        return each_of(run, errors, callback)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """``function(*args, **kwargs)`` as a `concurrent.futures.Future`. It can be cancelled while it waits
        for executors to be sent to. Its callbacks run in a thread of the client, which other results wait
        for."""
        return self._calls().submit(function, args, kwargs)

    def as_completed(
        self, futures: Iterable[Future[Any]], timeout: float | None = None
    ) -> Iterator[Future[Any]]:
        """Futures of this client as they end. Raises TimeoutError after so many seconds."""
        return self._calls().as_completed(futures, timeout)

    def executor(self, max_workers: int | None = None) -> Executor:
        """A `concurrent.futures.Executor`, with at most `max_workers` calls at a time. Shutting it down
        leaves the client open."""
        return self._calls().executor(max_workers)

    def close(self) -> None:
        """End the calls' job, when all that was submitted is done, and its processes on this machine."""
        self._closed = True
        if self._made_calls is not None:
            self._made_calls.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._closed = True
        if self._made_calls is not None:
            self._made_calls.close(cancel=kind is not None)

    @property
    def on_output(self) -> Callable[[str, CallPrinted], None] | None:
        """What calls print is given to it, with the function's name, in a thread of the client. None: it is
        printed here, each line with its call's number."""
        return self._on_output

    @on_output.setter
    def on_output(self, hook: Callable[[str, CallPrinted], None] | None) -> None:
        self._on_output = hook
        if self._made_calls is not None:
            self._made_calls.set_on_output(hook)

    _on_output: Callable[[str, CallPrinted], None] | None = None

    @contextlib.contextmanager
    def show_progress(self, total: int | None = None) -> Iterator[None]:
        """Show on standard error, for as long as the ``with`` block lasts, how far its calls are: a bar on a
        terminal, one line in a notebook, elsewhere a line every 10 s. `total` is how many there will be, for
        the time left; the calls before the block do not count."""
        from cortex.cli.call_progress import CallsSoFar, call_display, slots_of

        before, began = self.progress(), time.monotonic()
        sent, done, failed = before.sent, before.done, before.failed

        def look() -> CallsSoFar:
            now = self.progress()
            bad = now.failed - failed
            seconds = time.monotonic() - began
            return CallsSoFar(now.done - done - bad, bad, now.sent - sent, total, slots_of(now), seconds)

        with call_display(look):
            yield

    def progress(self) -> CallNumbers:
        """What its calls have done so far."""
        from cortex.client.call_owners import CallNumbers

        return (self._made_calls.numbers if self._made_calls is not None else None) or CallNumbers()

    def _results(
        self,
        function: Callable[..., Any],
        entries: Iterable[Any],
        ordered: bool,
        errors: Errors,
        timeout: float | str | None,
        retries: int,
        length: int | None = None,
        star: bool = False,
    ) -> Iterator[Any]:
        from cortex.calls import results_of

        run = self._run(function, entries, ordered, timeout, retries, length, star)
        return results_of(run, errors)

    def _run(
        self,
        function: Callable[..., Any],
        entries: Iterable[Any],
        ordered: bool,
        timeout: float | str | None,
        retries: int,
        length: int | None = None,
        star: bool = False,
        discard: bool = False,
    ) -> CallRun:
        return self._calls().run(
            function,
            entries,
            _length(entries) if length is None else length,
            star,
            ordered=ordered,
            discard=discard,
            timeout=timeout,
            retries=retries,
        )

    def _calls(self) -> Calls:
        if self._made_calls is None:
            with self._making:
                if self._closed:
                    raise UsageError("this client is closed", cure="make another cortex.Client")
                if self._made_calls is None:
                    from cortex.calls import Calls, ClientOptions

                    options = ClientOptions(**self._options)
                    self._made_calls = Calls(self.config, options, self._on_output, self._nested)
        return self._made_calls

    def __reduce__(self) -> Any:
        return _arrived, (self.config.server,)

    # --- jobs ---

    def status(self) -> ClusterStatus:
        """What the cluster is doing: nodes and jobs. Raises Unreachable, NotTrusted or UsageError."""
        from cortex.client.cluster_client import ClusterConnection
        from cortex.wire.messages import ClusterStatus, GetStatus

        with ClusterConnection(self.config.home, self.config.server) as connection:
            return connection.ask(GetStatus(), ClusterStatus)

    def cancel(self, job: str) -> None:
        """Cancel a job of this client's (as admin: any)."""
        from cortex.client.cluster_client import ClusterConnection
        from cortex.wire.messages import CancelJob, ClusterStatus

        with ClusterConnection(self.config.home, self.config.server) as connection:
            connection.ask(CancelJob(job), ClusterStatus)

    def job(self, job: str) -> JobHandle:
        """The job of this id: to wait for, fetch, cancel or forget."""
        from cortex.job_handle import JobHandle

        return JobHandle(job, self.config)

    def __repr__(self) -> str:
        return f"cortex.Client({self.config.server!r})"


class LocalCluster:
    """A server and `nodes` nodes as processes of this machine, each with its own folder and no shared state
    but the file system; all ends with the ``with`` block, or with `close`.

    `slots` and `memory` ("1GB", or bytes) are each node's. `folder` is where their homes lie (default: a
    temporary folder, removed at the end). `data[i]` is the data root, or roots, of node i + 1.
    """

    def __init__(
        self,
        nodes: int = 2,
        *,
        slots: int = 1,
        memory: str | int = 768 * MIB,
        folder: str | os.PathLike[str] | None = None,
        data: Sequence[str | os.PathLike[str] | Sequence[str | os.PathLike[str]]] = (),
    ) -> None:
        if nodes < 1:
            raise UsageError(f"a cluster of {nodes} nodes can run nothing", cure="give nodes=1 or more")
        self._own = folder is None
        # Short, as unix sockets have short names; on a disk, as spilled data lies in it.
        self.folder = Path(tempfile.mkdtemp(prefix="cortex-cluster-") if folder is None else folder)
        self._slots, self._memory = slots, memory
        self._data = [[root] if isinstance(root, str | os.PathLike) else list(root) for root in data]
        self._environment = child_environment()
        for name in [name for name in self._environment if name.startswith("CORTEX_")]:
            del self._environment[name]
        self.server: subprocess.Popen[bytes] | None = None
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        """Name (``node1``) -> its process."""
        self._join_line = ""
        self.address = ""
        try:
            self.start_server()
            for _ in range(nodes):
                self.add_node(wait=False)
            self._wait_for(len(self.nodes))
        except BaseException:
            self.close()
            raise

    @property
    def client(self) -> Client:
        return Client(self.address, home=self.folder / "server")

    @property
    def config(self) -> Config:
        return self.client.config

    def start_server(self) -> None:
        """Start the server (again, at the address it had)."""
        listen = self.address or f"127.0.0.1:{_free_port()}"
        self.server = self._start("server", "server", "--listen", listen)
        deadline = time.monotonic() + CLUSTER_START_S_MAX
        while not self.address:
            said = self._output("server")
            for line in said.splitlines():
                if line.startswith("  cortex node --join "):
                    self._join_line = line.split()[-1]
                if line.startswith("commands here: "):
                    self.address = line.split()[-1]
            self._check("server", self.server, deadline)

    def add_node(self, wait: bool = True) -> str:
        """Start one more node; gives its name."""
        name = f"node{len(self.nodes) + 1}"
        self.start_node(name)
        if wait:
            self._wait_for(sum(each.poll() is None for each in self.nodes.values()))
        return name

    def start_node(self, name: str) -> None:
        """Start the node of this name, again if it has ended: with the same home."""
        spill = os.fspath(self.folder / name / "spill")
        number = int(name.removeprefix("node")) - 1
        roots = self._data[number] if number < len(self._data) else []
        data = [word for root in roots for word in ("--data", os.path.abspath(root))]
        self.nodes[name] = self._start(
            name, "node", "--listen", "127.0.0.1:0", "--spill", spill, "--slots", str(self._slots),
            "--memory", str(self._memory), *data, CORTEX_JOIN=self._join_line,
        )  # fmt: skip

    def output(self, name: str) -> str:
        """What ``server`` or a node has written: its log."""
        return self._output(name) + (self.folder / f"{name}.log").read_text("utf-8", "replace")

    def close(self) -> None:
        """End every process and remove what they left."""
        processes = [*self.nodes.values(), *([self.server] if self.server else [])]
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + NODE_EXIT_S_MAX + 1
        for process in processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.nodes.clear()
        self.server = None
        if self._own:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- inside ---

    def _command(self, _name: str) -> list[str]:
        return [sys.executable, "-P", "-m", "cortex"]

    def _start(self, name: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        home = self.folder / name
        home.mkdir(mode=0o700, exist_ok=True)
        command = [*self._command(name), *arguments, "--home", os.fspath(home)]
        out, log = self.folder / f"{name}.out", self.folder / f"{name}.log"
        with open(out, "wb") as output, open(log, "ab") as errors:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=self._environment | environment,
                cwd=home,
                start_new_session=True,  # Ctrl-C is the user's own: the ``with`` block ends these
            )

    def _output(self, name: str) -> str:
        return (self.folder / f"{name}.out").read_text("utf-8", "replace")

    def _wait_for(self, nodes: int) -> None:
        deadline = time.monotonic() + CLUSTER_START_S_MAX
        client = self.client
        while True:
            with contextlib.suppress(CortexError):
                if len(client.status().nodes) >= nodes:
                    return
            for name, process in self.nodes.items():
                self._check(name, process, deadline)

    def _check(self, name: str, process: subprocess.Popen[Any], deadline: float) -> None:
        if process.poll() is not None or time.monotonic() > deadline:
            what = "ended" if process.poll() is not None else f"did not come up in {CLUSTER_START_S_MAX:g} s"
            raise InternalError(
                f"the {name} of a local cluster {what}",
                details={"its last words": self.output(name)[-STDERR_TAIL_BYTES:]},
            )
        time.sleep(_LOOK_S)


def _arrived(server: str) -> Client:
    """A client that has travelled with a function."""
    client = Client(server)
    client._nested = True
    return client


def _length(entries: Iterable[Any]) -> int | None:
    """How many there are, where that is known."""
    return len(entries) if isinstance(entries, Sized) else None


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
