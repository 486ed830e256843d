"""pyarrow works without pandas, and with it where somebody else wants it."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
from btlm_data.formats.arrow import leave_pandas_out
leave_pandas_out()
import numpy as np, pyarrow as pa
table = pa.table({"a": np.arange(3), "b": pa.array(["x", None, "y"], pa.string())})
assert "pandas" not in sys.modules
import pandas as pd
assert table.to_pandas()["a"].tolist() == [0, 1, 2]
assert pa.array(pd.Series([1, 2])).to_pylist() == [1, 2]
leave_pandas_out()
"""


def test_arrays_are_made_without_pandas_which_still_works_afterwards() -> None:
    pytest.importorskip("pandas")
    subprocess.run([sys.executable, "-W", "error", "-c", CODE], check=True)
