"""The files that are measured on: made once, kept beside each other with their answers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cortex.units import format_bytes
from datasets import DATASETS


class Inputs:
    """`folder` holds the files; `say` gets a line for each that has to be made."""

    def __init__(self, folder: Path, say: Any) -> None:
        self.folder = folder
        self._say = say
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, dataset: str, rows: int, **options: Any) -> tuple[Path, dict[str, Any]]:
        """Path and answer of a data set of `rows` rows, seed 0."""
        cls = DATASETS[dataset]
        named = "".join(f"-{key}_{value}" for key, value in sorted(options.items()))
        path = self.folder / f"{dataset}-{rows}{named}{cls.suffix}"
        answer = path.with_suffix(".answer.json")
        if not answer.exists():
            made = cls(rows, 0, **options)
            self._say(f"making {path.name}, about {format_bytes(rows * made.row_bytes)}")
            partial = path.with_suffix(".partial")
            found = made.write(os.fspath(partial))
            partial.rename(path)
            answer.write_text(json.dumps(found))
        return path, json.loads(answer.read_text())


def warm(path: Path) -> None:
    """Read a file once, so that the first contender does not pay for the disk alone."""
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 24):
            pass
