"""The versions that two processes must share before they exchange pickles and Arrow data."""

from __future__ import annotations

import os
import platform
import sys

from cortex.errors import VersionMismatch
from cortex.version import VERSION

PROTOCOL_VERSION = "2"  # 2: with calls of functions

_PARTS = {"protocol": 1, "cortex": 2, "python": 2, "cloudpickle": 2, "pyarrow": 1}
"""How many leading numbers must be equal. Code objects change with Python's minor version and
cloudpickle's format with its own; Arrow's format is stable within a major version. Pickles name classes of
cortex, and where a job's work is divided among versions of it, its output could depend on the division."""
_PACKAGES = {"cortex": "cortex-mapreduce", "cloudpickle": "cloudpickle", "pyarrow": "pyarrow"}
"""What pip installs."""


def _installed_version(package: str) -> str:
    """The version of an installed package, by the name of its ``.dist-info`` folder (PEP 376)."""
    prefix, suffix = f"{package}-", ".dist-info"
    for folder in sys.path:
        try:
            names = os.listdir(folder or os.curdir)
        except OSError:  # an archive, or not there
            continue
        for name in names:
            if name.startswith(prefix) and name.endswith(suffix):
                return name[len(prefix) : -len(suffix)]
    from importlib import metadata  # other ways to be installed; slow to import (email, zipfile)

    return metadata.version(package)


def local_versions() -> dict[str, str]:
    """The versions of this process. Imports none of the packages."""
    return {
        "protocol": PROTOCOL_VERSION,
        "cortex": VERSION,
        "python": platform.python_version(),
        "cloudpickle": _installed_version("cloudpickle"),
        "pyarrow": _installed_version("pyarrow"),
    }


def check_versions(theirs: dict[str, str], ours: dict[str, str], who: str) -> None:
    """Raise VersionMismatch, naming everything that differs, unless `who` can work with us."""
    wrong = [
        name
        for name, parts in _PARTS.items()
        if theirs.get(name, "").split(".")[:parts] != ours[name].split(".")[:parts]
    ]
    if not wrong:
        return
    said = [f"{name} {theirs.get(name, 'unknown')} there, {ours[name]} here" for name in wrong]
    cures = []
    if "python" in wrong:
        cures.append(f"run {who} with Python {'.'.join(ours['python'].split('.')[:2])}")
    packages = [f"'{_PACKAGES[name]}=={ours[name]}'" for name in wrong if name in _PACKAGES]
    if packages:
        cures.append(f"for {who}: pip install {' '.join(packages)}")
    raise VersionMismatch(
        f"{who} has other versions: {'; '.join(said)}",
        cure=", and ".join(cures) or "install the same version of cortex on both sides",
    )
