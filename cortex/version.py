"""The version of cortex, for whoever may not import the package's front."""

from __future__ import annotations

VERSION = "0.1.0"
