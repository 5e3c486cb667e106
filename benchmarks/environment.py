"""What the figures were measured on and with."""

import importlib.metadata
import os
import platform
from pathlib import Path

import jax

from benchmarks.contenders import num_cores

PACKAGES = ("jax", "jaxlib", "optax", "optlab", "numpy", "torch")


def environment() -> dict[str, str]:
    """Return names and values, in the order in which to print them."""
    found = {"Python": platform.python_version()}
    found |= {package: _version(package) for package in PACKAGES}
    found |= {
        "system": platform.platform(),
        "CPU": _cpu(),
        "cores": str(num_cores()),
        "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
    }
    if found["torch"] != "none":
        import torch

        found["torch threads"] = str(torch.get_num_threads())
        found["torch device"] = "cuda" if torch.cuda.is_available() else "cpu"
    for variable in ("XLA_FLAGS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        if variable in os.environ:
            found[variable] = os.environ[variable]
    return found


def _version(package: str) -> str:
    if package == "optlab":
        import optlab

        return optlab.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _cpu() -> str:
    """Return the processor's name as Linux knows it, elsewhere as Python does."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
