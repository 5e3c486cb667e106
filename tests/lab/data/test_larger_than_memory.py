"""A data set that is larger than the memory of the process."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit memory this way")
def test_a_run_reads_a_memory_map_larger_than_the_memory_that_it_is_allowed(tmp_path):
    script = Path(__file__).with_name("train_on_memory_map.py")
    command = [sys.executable, str(script), str(tmp_path / "rows")]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    error, refused = output.split()
    assert refused == "True"
    # 1e-7 times the error at first, which is about 2, and roundings of float32.
    assert float(error) < 1e-5
