"""Two devices on the CPU, so that sharding can be checked anywhere."""

import jax

jax.config.update("jax_num_cpu_devices", 2)
