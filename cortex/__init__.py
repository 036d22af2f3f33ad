"""cortex: MapReduce over files larger than memory, in plain Python."""

__version__ = "0.1.0"
