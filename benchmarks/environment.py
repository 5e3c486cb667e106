"""The hardware and the versions that the figures were measured with."""

import importlib.metadata
import os
import platform
from pathlib import Path

import jax

from benchmarks.contenders import num_cores

PACKAGES = ("jax", "jaxlib", "optax", "optlab", "numpy", "torch")


def environment() -> dict[str, str]:
    """Return names and values, in their order in the output."""
    versions = {"Python": platform.python_version()}
    versions |= {package: _version(package) for package in PACKAGES}
    versions |= {
        "system": platform.platform(),
        "CPU": _cpu(),
        "cores": str(num_cores()),
        "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
    }
    if versions["torch"] != "none":
        import torch

        versions["torch threads"] = str(torch.get_num_threads())
        versions["torch device"] = "cuda" if torch.cuda.is_available() else "cpu"
    for variable in ("XLA_FLAGS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        if variable in os.environ:
            versions[variable] = os.environ[variable]
    return versions


def _version(package: str) -> str:
    if package == "optlab":
        import optlab

        return optlab.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _cpu() -> str:
    """Return the processor's name from Linux, or from Python elsewhere."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
