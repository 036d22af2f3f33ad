"""A job file with anything wrong in it gives a typed error with a place, never another exception."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.errors import JobFileError
from cortex.job.expressions import quote_name
from cortex.job.yaml_file import load_job_file

EXAMPLE = """\
name: station-extremes
input: {path: measurements.csv, format: csv, columns: {station: string, temp: float64}, delimiter: ";"}
map:
  where: temp > -90 and station != 'test'
  select: {station: station, f: temp * 9 / 5 + 32}
reduce:
  group_by: [station]
  aggregate: {coldest: min(f), readings: count()}
output: {path: out, format: csv, overwrite: false}
resources: {memory: 512MB, reducers: auto}
"""
PIECES = st.sampled_from(
    [*"[]{}:,'\"&*!#|>%@`-? \n\t~<0a\x07é", "\n  ", ": ", " #", "<<: *a", "!!int", "---\n", "null", "name"]
)
EDITS = st.lists(st.tuples(st.integers(0, len(EXAMPLE)), st.integers(0, 12), PIECES), min_size=1, max_size=3)


@settings(max_examples=200, deadline=None)
@given(EDITS)
def test_any_edit_loads_or_is_reported_with_its_place(edits: list[tuple[int, int, str]]) -> None:
    text = EXAMPLE
    for at, cut, piece in edits:
        text = text[:at] + piece + text[at + cut :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.yaml"
        path.write_text(text)
        said = None
        try:
            load_job_file(str(path))
        except JobFileError as error:
            said = error.message
        for line in said.split("\n") if said else ():
            place = re.match(r".*job\.yaml:(\d+):(\d+): .", line)
            assert place, line
            assert 1 <= int(place[1]) <= len(text.splitlines()) + 1, line


NAMES = st.text(min_size=1, max_size=8).filter(lambda name: name.strip() and name.isprintable())


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(NAMES, NAMES, min_size=1, max_size=4))
def test_names_survive_whatever_yaml_makes_of_them(columns: dict[str, str]) -> None:
    select = {name: quote_name(source) for name, source in columns.items()}
    job = {
        "input": {"path": "a.csv"},
        "map": {"select": select},
        "reduce": {"group_by": list(select), "aggregate": {"n" * 9: "count()"}},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.yaml"
        path.write_text(yaml.safe_dump(job, allow_unicode=True), encoding="utf-8")
        spec = load_job_file(str(path)).spec
    assert spec.select == select
    assert spec.group_by == tuple(select)
