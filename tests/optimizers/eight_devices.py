"""Update matrices on eight devices in many layouts, and compare with one: a program for a test."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optlab

LAYOUTS = {
    AxisType.Explicit: (P("a"), P(None, "a"), P("a", "b"), P(None, None, "b")),
    AxisType.Auto: (P(("a", "b")), P("a", "b")),
}
MAKERS = {
    "muon": lambda: optlab.scale_by_muon(),
    "soap": lambda: optlab.scale_by_soap(precondition_frequency=1),
    "shampoo": lambda: optlab.scale_by_shampoo(precondition_frequency=1, eps=0.1),
}


def main():
    """Print a line for each rule, kind of mesh and layout, and exit with 1 if any differs."""
    jax.config.update("jax_num_cpu_devices", 8)
    rng = np.random.default_rng(0)
    shapes = {"w1": (8, 16), "w2": (8, 16), "w3": (8, 16), "square": (8, 8), "bias": (8,)}
    shapes["layers"] = (8, 8, 16)
    first, g = (
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(2)
    )
    worst = 0.0
    for name, make in MAKERS.items():
        tx = make()
        update = jax.jit(tx.update)
        _, before = update(first, tx.init(g))  # SOAP's first update moves nothing
        alone, _ = update(g, before)
        for kind, layouts in LAYOUTS.items():
            mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
            for layout in layouts:
                with jax.set_mesh(mesh):
                    placed = {
                        leaf: jax.device_put(x, NamedSharding(mesh, P(*layout[: x.ndim])))
                        for leaf, x in g.items()
                    }
                    state = jax.device_put(before, NamedSharding(mesh, P()))
                    updates, _ = update(placed, state)
                pairs = ((alone[leaf], np.asarray(updates[leaf])) for leaf in g)
                largest = max(float(jnp.abs(x - y).max()) for x, y in pairs)
                print(name, kind, layout, f"{largest:.1e}")
                worst = max(worst, largest)
    # Updates are about 1; sums of 16 products in another order differ by some roundings.
    return 0 if worst < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
