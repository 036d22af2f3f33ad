"""What several modules of tests begin with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.executor_side import ComputeSide


@pytest.fixture
def side(tmp_path: Path) -> Iterator[ComputeSide]:
    """An executor of a compute job, which serves calls."""
    found = ComputeSide(tmp_path)
    yield found
    found.close()


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[ComputeSide]:
    """The same, with the limits of time that executors have."""
    found = ComputeSide(tmp_path, patient=False)
    yield found
    found.close()
