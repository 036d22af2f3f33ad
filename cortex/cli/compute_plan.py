"""What ``cortex compute`` is about to do, in lines for people. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cortex.job.compute_spec import ComputeFile
from cortex.units import counted, format_bytes, format_count, format_seconds


@dataclass(frozen=True)
class Place:
    """Where calls will run. `server` "": this machine. `nodes` and `slots` are of the cluster, or of here;
    `slots_max` is how many of the cluster's the calls may have, 0: their share."""

    server: str
    nodes: int
    slots: int
    memory_bytes: int = 0
    slots_max: int = 0


_MODES = {
    "ordered": "ordered (results in the order of the arguments)",
    "stream": "stream (results as calls complete)",
    "collect": "collect (all results at the end)",
    "none": "none (results are only counted)",
}


def plan_lines(file: ComputeFile, count: int | None, place: Place) -> list[str]:
    function = file.function
    number = "an unknown number" if count is None else format_count(count)
    lines = [
        f"{file.name}:",
        f"  function   {function.name} of {function.file or function.module}",
        f"  arguments  {number}: {file.arguments.text}",
        f"  mode       {_MODES[file.mode]}",
        f"  output     {_output(file)}",
        f"  where      {place_text(place)}",
    ]
    each = []
    if file.timeout_s:
        each.append(f"{format_seconds(file.timeout_s)} at most")
    if file.retries:
        each.append(counted(file.retries, "retry").replace("retrys", "retries"))
    if each:
        lines.append(f"  each call  {' · '.join(each)}")
    ends = "ends the run" if file.errors == "raise" else "is noted, and the others go on"
    return [*lines, f"  a failure  {ends}"]


def place_text(place: Place) -> str:
    slots = counted(place.slots, "slot")
    if place.server:
        none = " (calls wait for one: cortex node)" if not place.nodes else ""
        most = f", {place.slots_max} of them at most" if place.slots_max else ""
        return f"the cluster at {place.server}: {counted(place.nodes, 'node')}, {slots}{most}{none}"
    return f"this machine: {slots}, {format_bytes(place.memory_bytes)}"


def _output(file: ComputeFile) -> str:
    if file.mode == "none":
        return "none"
    return file.output.path or "standard output, a JSON object a line"
