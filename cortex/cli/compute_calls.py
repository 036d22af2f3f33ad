"""The calls of one ``cortex compute``: a client's, with their arguments kept until there is a result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cortex.calls import Calls, ClientOptions
from cortex.cli.call_progress import slots_of
from cortex.cli.terminal import printable, say
from cortex.client.call_errors import CallError
from cortex.config import Config
from cortex.job.compute_spec import ComputeFile
from cortex.wire.messages import CallForm, CallPrinted

_FORMS = {"one": CallForm.ONE, "star": CallForm.STAR, "full": CallForm.FULL}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the call of this number. `failed` is None for one that is done."""

    call: int
    arguments: Any
    """As they would be written: one value; a list; a mapping of names."""
    result: Any
    failed: CallError | None


class ComputeCalls:
    """A context manager; its end, however it comes, ends the calls. Iterated once, by one thread."""

    def __init__(
        self, file: ComputeFile, function: Callable[..., Any], total: int | None, config: Config
    ) -> None:
        self._file = file
        self._function = function
        self._total = total
        self.sent = 0
        """Arguments that were taken from the source; like `slots` for whoever shows progress."""
        self.began: float | None = None
        """When the first was taken: the processes were there, or the cluster."""
        self._waiting: dict[int, Any] = {}
        """Arguments of calls that have no result yet."""
        options = ClientOptions(
            name=file.name,
            memory=file.memory_bytes or "",
            slots=file.slots,
            priority=file.priority,
            files=dict(file.files),
            modules=file.modules,
            env=dict(file.env),
        )
        self._calls = Calls(config, options, _printed)

    def __enter__(self) -> ComputeCalls:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._calls.close(cancel=kind is not None)

    @property
    def slots(self) -> int:
        return slots_of(self._calls.numbers)

    def __iter__(self) -> Iterator[Outcome]:
        file = self._file
        form = _FORMS[file.arguments.form]
        discard = file.mode == "none"
        run = self._calls.run(
            self._function,
            self._entries(),
            self._total,
            False,
            form=form,
            ordered=file.mode in ("ordered", "collect"),
            discard=discard,
            timeout=f"{file.timeout_s:f}s" if file.timeout_s else None,
            retries=file.retries,
        )
        for batch in run:
            failed = {each.argument_index: each for each in batch.failures}
            for call in range(batch.first, batch.first + batch.count):
                arguments = self._waiting.pop(call)
                result = None if discard else batch.values[call - batch.first]
                yield Outcome(call, _written(arguments, form), result, failed.get(call))

    def _entries(self) -> Iterator[Any]:
        self.began = time.monotonic()
        for entry in self._file.arguments:
            self._waiting[self.sent] = entry
            self.sent += 1
            yield entry


def _written(entry: Any, form: CallForm) -> Any:
    if form == CallForm.FULL:
        args, kwargs = entry
        return kwargs or list(args)
    return list(entry) if form == CallForm.STAR else entry


def _printed(function: str, printed: CallPrinted) -> None:
    """What calls print: standard output is for their results."""
    for line in printed.text.splitlines():
        say(f"[{function} #{printed.call}] {printable(line)}")
