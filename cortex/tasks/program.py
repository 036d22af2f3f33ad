"""What a job's tasks do, made once per executor from the spec, the user's code and the plan."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import cloudpickle
import pyarrow as pa

from cortex.errors import ColumnError, CortexError
from cortex.formats.input_bytes import Opener, Soon, at_hand, open_local
from cortex.job.aggregates import AggregateCall, columns_of_call, parse_aggregate
from cortex.job.expressions import Expression, columns_of, parse_expression
from cortex.job.plan import InputPlan, SplitGroups, Splits
from cortex.job.protocol import JobCode
from cortex.job.spec import JobSpec
from cortex.job.types import arrow_type
from cortex.kernels.aggregates import result_type
from cortex.kernels.expressions import compile_expression, compile_filter
from cortex.storage.map_output_store import MapOutputStore
from cortex.storage.spill_quota import SpillQuota
from cortex.tasks.budget import Budget
from cortex.tasks.client_input import Fetched
from cortex.tasks.position import Position
from cortex.tasks.user_errors import USER_EXCEPTIONS, load_error, user_error
from cortex.wire.messages import Counters


class Program:
    """Read-only but for `plan`, which comes with the first task after planning."""

    def __init__(
        self,
        spec: JobSpec,
        code: bytes,
        store: MapOutputStore,
        staging_dir: str,
        budget: Budget,
        open_input: Opener = open_local,
        soon: Soon = at_hand,
        room: SpillQuota | None = None,
        fetched: Fetched | None = None,
    ) -> None:
        self.fetched = fetched or Fetched()
        self.spec = spec
        self.room = room
        """For parts of the output, where they count as spilled data."""
        self.store = store
        self.staging_dir = staging_dir
        self.budget = budget
        self.open_input = open_input
        self.soon = soon
        self.position = Position()
        self.plan = InputPlan((), Splits(), SplitGroups(), (), 0, 1)
        self.where: Expression | None = parse_expression(spec.where) if spec.where else None
        self.calls: list[AggregateCall] = [parse_aggregate(text) for text in spec.aggregate.values()]
        needed = self._needed_columns()
        self.selected: list[tuple[str, Expression]] = [
            (name, parse_expression(text))
            for name, text in spec.select.items()
            if needed is None or name in needed
        ]
        self._code: JobCode | None = load_code(code, spec.code_name) if code else None

    @property
    def code(self) -> JobCode:
        """The user's job object; only asked for where the spec says there is one."""
        assert self._code is not None
        return self._code

    @property
    def reducers(self) -> int:
        return max(1, self.plan.reducers)

    @property
    def python_values(self) -> bool:
        """The result goes back to the submitting client, not to files."""
        return not self._is_stored

    @property
    def output_format(self) -> str:
        return self.spec.output.format if self._is_stored else "arrow"

    @property
    def _is_stored(self) -> bool:
        return bool(self.spec.output.path) or self.spec.output.at == "kept"

    @property
    def text_input(self) -> bool:
        return all(file.format == "text" for file in self.plan.files)

    def used_columns(self) -> list[str] | None:
        """Input columns that the job reads; None: all of them."""
        spec = self.spec
        if spec.map_form != "declared":
            return None
        needed = self._needed_columns()
        if not spec.select and needed is None:
            return None
        used: list[str] = []
        if spec.select:
            for _, expression in self.selected:
                used += columns_of(expression)
        else:
            used += sorted(needed or ())
        if self.where is not None:
            used += columns_of(self.where)
        return list(dict.fromkeys(used))

    def _needed_columns(self) -> set[str] | None:
        """Columns of the map's output that are used after it; None: all."""
        if self.spec.reduce_form != "aggregate":
            return None
        return {*self.spec.group_by, *(name for call in self.calls for name in columns_of_call(call))}

    def empty_batch(self) -> pa.RecordBatch:
        """No rows of the input's columns."""
        schema = pa.schema([(name, arrow_type(kind)) for name, kind in self.plan.columns])
        return pa.RecordBatch.from_arrays([pa.nulls(0, f.type) for f in schema], schema=schema)

    def check(self, plan: InputPlan) -> None:
        """Raise ColumnError now, not in the first map, for expressions the columns do not allow."""
        self.plan = plan
        if self.spec.map_form != "declared":
            return
        if self.where is not None:
            compile_filter(self.where, self.empty_batch().schema)
        mapped = self.mapped_schema()
        for name in self.spec.group_by:
            if mapped.get_field_index(name) < 0:
                raise ColumnError(
                    f"group_by: there is no column {name!r}; there are {', '.join(mapped.names)}",
                    cure="name a column of select, or of the input when there is no select",
                )
        if self.spec.reduce_form == "aggregate":
            for text, call in zip(self.spec.aggregate.values(), self.calls):
                value = compile_expression(call.argument, mapped).type if call.argument else None
                try:
                    result_type(call.function, value)
                except ColumnError as error:
                    error.message = f"{text}: {error.message}"
                    error.cure = self._inferred_cure(call, value) or error.cure
                    raise

    def _inferred_cure(self, call: AggregateCall, value: pa.DataType | None) -> str:
        """What helps when a number came to be text because the file's first values are no numbers."""
        names = [name for name in columns_of_call(call) if name in dict(self.plan.columns)]
        inferred = all(file.format in ("csv", "tsv") for file in self.plan.files) and not self.spec.select
        if not names or not inferred or value != pa.string() or names[0] in self.spec.input.columns:
            return ""
        return (
            f"{names[0]} was taken for text by its first values, or has none: say columns: {{{names[0]}: "
            "float64}, and null_values: ['', NA] if words such as NA stand for no value"
        )

    def mapped_schema(self) -> pa.Schema:
        """The columns a declared map gives."""
        schema = self.empty_batch().schema
        if not self.spec.select:
            return schema
        return pa.schema([(name, compile_expression(e, schema).type) for name, e in self.selected])

    @contextlib.contextmanager
    def task_scope(self) -> Iterator[None]:
        """The user's ``setup`` before and ``cleanup`` after; cleanup is not called when the task failed."""
        if self._code is None:
            yield
            return
        self.take_counters()
        self._call("setup")
        yield
        self._call("cleanup")

    def _call(self, name: str) -> None:
        try:
            getattr(self._code, name)()
        except (CortexError, MemoryError):
            raise
        except USER_EXCEPTIONS as error:
            raise user_error(
                error, function=name, code=self._code, code_name=self.spec.code_name, where={}, arguments=""
            ) from error

    def take_counters(self) -> Counters:
        return self._code._take_counters() if self._code is not None else {}


def load_code(code: bytes, code_name: str) -> Any:
    """Unpickle the user's job object. Only ever in an executor. UserCodeError if it cannot be."""
    try:
        return cloudpickle.loads(code)
    except (CortexError, MemoryError):
        raise
    except Exception as error:
        raise load_error(f"the job's code {code_name}", error) from error
