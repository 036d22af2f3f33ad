"""Where a job's input was read, in words: on its node, from another one, from the client."""

from __future__ import annotations

from cortex.units import format_bytes
from cortex.wire.messages import Locality


def shares(found: Locality) -> str:
    """Of the maps that are done, and their bytes; "" when there are none yet (or all ran on one machine)."""
    maps = found.local_maps + found.streamed_maps + found.client_maps
    if not maps:
        return ""
    parts = [
        (found.local_maps, found.local_bytes, "node-local"),
        (found.streamed_maps, found.streamed_bytes, "streamed from other nodes"),
        (found.client_maps, found.client_bytes, "from the client"),
    ]
    said = [f"{100 * n / maps:.0f} % {what} ({format_bytes(size)})" for n, size, what in parts if n]
    return "maps " + " · ".join(said)


def local_share(found: Locality) -> str:
    """For a column of a table."""
    maps = found.local_maps + found.streamed_maps + found.client_maps
    return f"{100 * found.local_maps / maps:.0f} % local" if maps else ""
