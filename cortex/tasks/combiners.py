"""What folds groups before their reduce: in early merges, and where a node combines its map outputs."""

from __future__ import annotations

from cortex.job.types import arrow_type
from cortex.shuffle.aggregation import Aggregation
from cortex.shuffle.collector import Combiner
from cortex.shuffle.run_schema import STATES, Layout
from cortex.tasks.pair_emitters import PYTHON_FOLDS, folded_columns, method_fold, python_fold
from cortex.tasks.program import Program
from cortex.tasks.table_emitters import indexed_calls


def aggregation_as_mapped(program: Program, layout: Layout) -> Aggregation:
    """As the maps had it: the arguments' types stand in the runs' layout."""
    combine, what = program.spec.combine, layout.payload.partition(":")[2]
    types = [arrow_type(name) for name in what.split(";")] if what else []
    if combine:
        return folded_columns(combine, types)
    return Aggregation(indexed_calls(program.calls)[0], types)


def combiner_of(program: Program, layout: Layout) -> Combiner | None:
    """For runs of such a layout; None for a job whose rows are not combined."""
    spec = program.spec
    if layout.payload.startswith(STATES):
        return aggregation_as_mapped(program, layout).combine
    if spec.combine == "method":
        return method_fold(program.code.combine)
    if spec.combine == "binary":
        return python_fold(program.code.combine_function)
    if spec.combine:
        return python_fold(PYTHON_FOLDS[spec.combine])
    return None
