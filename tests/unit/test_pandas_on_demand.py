"""pyarrow does not import pandas for cortex's own calls, and knows it once the job's code has it."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os, sys, cortex
from cortex.tasks.pandas_on_demand import defer_pandas
defer_pandas()
import numpy as np, pyarrow as pa
%s
own = '''
pa.array(np.zeros(3)); pa.array([1, 2]); pa.array(["a", None]); pa.table({"a": np.zeros(3)})
'''
exec(compile(own, os.path.join(os.path.dirname(cortex.__file__), "x.py"), "exec"))
assert ("pandas" in sys.modules) == ("pd" in globals())
%s
"""
OWN_IMPORT = """
import pandas as pd
assert pd.__loader__ is pd.__spec__.loader and hasattr(pd.__loader__, "get_data")
assert pa.array(pd.Series([1.0, float("nan")])).null_count == 1
assert pa.Table.from_pandas(pd.DataFrame({"x": [1, 2]})).to_pandas()["x"].sum() == 3
"""
AT_THE_TOP = """
assert pa.array([pd.NaT, pd.Timestamp(0), pd.NA], from_pandas=True).null_count == 2
"""
BY_PYARROW = """
assert pa.table({"x": [1, 2]}).to_pandas()["x"].sum() == 3
assert pa.array(sys.modules["pandas"].Series([1.0, float("nan")])).null_count == 1
"""
UNPICKLED_BY_CORTEX = """
import pickle
stored = b"cpandas\\nTimestamp\\n."
source = "def value(): return pickle.loads(stored)"
exec(compile(source, os.path.join(os.path.dirname(cortex.__file__), "x.py"), "exec"))
assert value().__name__ == "Timestamp"
"""
NOT_INSTALLED = """
sys.path[:] = [p for p in sys.path if "site-packages" not in p]
try:
    import pandas
except ImportError:
    pass
else:
    raise SystemExit("pandas was found")
assert pa.array(np.zeros(3)).null_count == 0
"""


@pytest.mark.parametrize("then", [OWN_IMPORT, AT_THE_TOP, BY_PYARROW, UNPICKLED_BY_CORTEX, NOT_INSTALLED])
def test_pandas_is_imported_on_demand_only(then: str) -> None:
    first = "import pandas as pd" if then is AT_THE_TOP else ""
    if then is not NOT_INSTALLED:
        pytest.importorskip("pandas")
    script = SCRIPT % (first, then)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
