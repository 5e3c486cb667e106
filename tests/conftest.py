"""What all tests need: two devices on the CPU, so that sharding can be checked anywhere."""

import jax
import pytest

pytest.register_assert_rewrite("helpers")
jax.config.update("jax_num_cpu_devices", 2)
