"""What all tests need: two devices on the CPU, so that sharding can be checked anywhere."""

import contextlib

import jax
import pytest

pytest.register_assert_rewrite("helpers")
jax.config.update("jax_num_cpu_devices", 2)


def _strict_in_double():
    stack = contextlib.ExitStack()
    stack.enter_context(jax.enable_x64(True))
    stack.enter_context(jax.numpy_dtype_promotion("strict"))
    return stack


@pytest.fixture(
    params=[
        pytest.param(lambda: jax.debug_nans(True), id="debug_nans"),
        pytest.param(lambda: jax.debug_infs(True), id="debug_infs"),
        pytest.param(lambda: jax.numpy_dtype_promotion("strict"), id="strict"),
        pytest.param(lambda: jax.disable_jit(), id="disable_jit"),
        pytest.param(lambda: jax.enable_x64(True), id="x64"),
        pytest.param(_strict_in_double, id="strict-x64"),
    ]
)
def jax_setting(request):
    """A function that returns a context in which one of JAX's settings is not the usual one."""
    return request.param
