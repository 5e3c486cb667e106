"""What all tests need: two devices, a compiler that is quick, and files spread over workers."""

import atexit
import os
import shutil
import tempfile
from importlib.metadata import version

# Most of the time of the tests is XLA's, and these options let it compile small programs in less of
# it: with the emitters it had before those through MLIR, one LLVM module a program, and without
# LLVM's optimizations. Where XLA_FLAGS is set, if only to nothing, it stands: `.ci/run` compiles
# tests of the arithmetic as users do. XLA ends a process that passes an option it does not know,
# which a later one may not.
if version("jaxlib").startswith("0.10."):
    options = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", f"{options} --xla_backend_optimization_level=0")

# The threads of LAPACK's library and those of XLA wait for each other where all cores are at work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import contextlib
import gc
import threading

import jax
import pytest

pytest.register_assert_rewrite("helpers")
jax.config.update("jax_num_cpu_devices", 2)


def _share_contexts(programs=500):
    """Let JAX write many programs in one MLIR context of each thread.

    JAX makes one for each program, which takes a quarter of the time that one operation needs until
    it is compiled, and tests compile thousands. A context keeps what was written in it, so that a
    new one comes after some hundred programs.
    """
    from jax._src.interpreters import mlir

    make, own = mlir.make_ir_context, threading.local()

    def context():
        own.made = getattr(own, "made", -1) + 1
        if own.made % programs == 0:
            own.context = make()
        return own.context

    mlir.make_ir_context = context


if version("jaxlib").startswith("0.10."):  # it is no public part of JAX
    _share_contexts()


def pytest_configure(config):
    """Keep what is compiled in a folder of this run: many tests compile what others have.

    Workers share it, through `pytest_configure_node`. Where JAX_COMPILATION_CACHE_DIR names a
    folder that stays, the next run finds it there as well.
    """
    folder = getattr(config, "workerinput", {}).get("programs")
    if folder is None and jax.config.jax_compilation_cache_dir is None:
        folder = tempfile.mkdtemp(prefix="optlab-tests-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", folder)
    loops = os.path.join(jax.config.jax_compilation_cache_dir, "native")
    os.environ.setdefault("OPTLAB_NATIVE_CACHE", loops)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_configure_node(node):
    """Tell a worker where to keep what is compiled."""
    node.workerinput["programs"] = jax.config.jax_compilation_cache_dir


def _group(nodeid):
    """Return what runs on one worker: a file, or a row's checks.

    Tests of a file share compiled functions, and checks of a row do.
    """
    file, _, test = nodeid.partition("::")
    return test.partition("-")[0] if file.endswith("/test_checks.py") else file


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """Send whole groups to workers.

    The mark `xdist_group` does not do so everywhere: pytest-xdist 3.8 writes it into a test's name
    in a way that pytest 9.2 does not read. Then each test may run on another worker than those of
    its file, and compile anew what they have compiled.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return _group(nodeid)

    return Groups(config, log)


def pytest_collection_modifyitems(items):
    """Run rows' checks last: small groups fill the time that the last files leave to a worker."""
    items.sort(key=lambda item: _group(item.nodeid) != item.nodeid.partition("::")[0])


def pytest_collection_finish():
    """Keep what was imported and collected from the garbage collector, which finds none there."""
    gc.collect()
    gc.freeze()


def _strict_in_double():
    stack = contextlib.ExitStack()
    stack.enter_context(jax.enable_x64(True))
    stack.enter_context(jax.numpy_dtype_promotion("strict"))
    return stack


@pytest.fixture(
    params=[
        pytest.param(lambda: jax.debug_nans(True), id="debug_nans"),
        pytest.param(lambda: jax.debug_infs(True), id="debug_infs"),
        pytest.param(lambda: jax.disable_jit(), id="disable_jit"),
        pytest.param(_strict_in_double, id="strict-x64"),
        # Each is half of the one before.
        pytest.param(
            lambda: jax.numpy_dtype_promotion("strict"), id="strict", marks=pytest.mark.slow
        ),
        pytest.param(lambda: jax.enable_x64(True), id="x64", marks=pytest.mark.slow),
    ]
)
def jax_setting(request):
    """A function that returns a context in which one of JAX's settings is not the usual one."""
    return request.param
