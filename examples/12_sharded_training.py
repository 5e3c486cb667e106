"""Divide the optimizer's state over all devices (ZeRO-1), and go on from a checkpoint on half.

A network of two hidden layers learns handwritten digits. Every device holds its parameters and a
part of each batch, and one part of the optimizer's state only. The script runs on all devices that
there are: GPUs, TPUs, or a CPU that is told to act as four devices. It

1. says what each device holds of the state, whole and divided;
2. says what the compiled training steps move between devices, for AdamW, for AdamW behind a clip
   by the global norm, and for Muon;
3. trains on all devices and on one, and compares;
4. stores a checkpoint in the middle, restores it on half of the devices, and trains to the end.

On four devices of a CPU, each holds 170,132 bytes of the state of AdamW in place of 680,084. A step
reduces all gradients in one operation, and gathers once each of the five parameters that four
devices can divide; the sixth, the bias of ten classes, is whole on each. The clip reduces six
numbers more, and Muon gathers matrices, 20 gathers in all. After 200 steps, four devices and one
had the same loss to six digits and parameters that differed by 3e-6 of the largest; those of the
run that went on with two devices differed by 3e-7. The order of sums is all that differs.

It takes some seconds:

    python examples/12_sharded_training.py
"""

import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import AxisType, Mesh
from sklearn.datasets import load_digits

import optlab
from optlab import sharding

# Before anything else asks for devices. GPUs and TPUs, where there are some, come before CPUs.
jax.config.update("jax_num_cpu_devices", 4)

WIDTH, STEPS, SEED = 256, 200, 0
EXAMPLES = 64
"""Examples of a batch, less what the devices cannot divide."""

OPTIMIZERS = {
    "AdamW": optlab.adamw(2e-3),
    "clip, AdamW": optax.chain(optlab.clip_by_global_norm(1.0), optlab.adamw(2e-3)),
    "Muon": optlab.muon(2e-2, axes={"layers/2/kernel": optlab.rules.Axes()}),
}


class Network(nnx.Module):
    """Images (batch, 64) → logits (batch, 10)."""

    def __init__(self, rngs: nnx.Rngs):
        sizes = (64, WIDTH, WIDTH, 10)
        self.layers = nnx.List([nnx.Linear(*pair, rngs=rngs) for pair in pairwise(sizes)])

    def __call__(self, x: jax.Array) -> jax.Array:
        *hidden, head = self.layers
        for layer in hidden:
            x = nnx.relu(layer(x))
        return head(x)


def digits() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return images and labels to train on and to test on, shuffled."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(images))
    data = {
        "images": (images[order] / 16).astype(np.float32),
        "labels": labels[order].astype(np.int32),
    }
    return {k: x[:1300] for k, x in data.items()}, {k: x[1300:] for k, x in data.items()}


MODEL = Network(nnx.Rngs(SEED))
GRAPH = nnx.graphdef(MODEL)
# On the host, because a step takes the memory of the parameters that it is given.
PARAMS = jax.tree.map(np.asarray, nnx.state(MODEL, nnx.Param))
TRAIN, TEST = digits()


def loss(params, batch) -> jax.Array:
    """Return the mean loss of a batch."""
    logits = nnx.merge(GRAPH, params)(batch["images"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()


@jax.jit
def accuracy(params, batch) -> jax.Array:
    """Return the share of images whose largest logit is that of their label."""
    logits = nnx.merge(GRAPH, params)(batch["images"])
    return jnp.mean(jnp.argmax(logits, axis=-1) == batch["labels"])


def mesh_of(devices: list[jax.Device]) -> Mesh:
    """Return a mesh of one axis. Its axes are automatic: the model says nothing of devices."""
    shape, kinds = (len(devices),), (AxisType.Auto,)
    return jax.make_mesh(shape, ("data",), axis_types=kinds, devices=devices)


def batch_of(step: int, size: int) -> dict[str, np.ndarray]:
    """Return the batch of a step, the same on all meshes."""
    chosen = np.random.default_rng((SEED, step)).choice(len(TRAIN["labels"]), size, replace=False)
    return {name: x[chosen] for name, x in TRAIN.items()}


class Run:
    """A training run on some devices."""

    def __init__(self, tx: optax.GradientTransformation, mesh: Mesh, size: int):
        self.tx, self.mesh, self.size, self.done = tx, mesh, size, 0
        self.step = sharding.step(tx, loss, PARAMS, mesh)
        self.params = jax.device_put(PARAMS, self.step.params_sharding)
        self.state = sharding.init(tx, self.params, mesh)

    def batch(self, step: int) -> dict[str, jax.Array]:
        """Return the batch of a step, divided over the devices."""
        return sharding.divide_batch(batch_of(step, self.size), self.mesh)

    def moved(self) -> Counter:
        """Return how often each operation that moves arrays stands in the compiled step."""
        program = self.step.lower(self.params, self.state, self.batch(0)).compile()
        return Counter(one.operation for one in sharding.collectives(program))

    def to(self, stop: int) -> float:
        """Train up to a step; return the last loss."""
        for step in range(self.done, stop):
            self.params, self.state, value = self.step(self.params, self.state, self.batch(step))
        self.done = stop
        return float(value)

    def save(self, folder: Path) -> None:
        """Store parameters and state; each device writes its own part."""
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder, (self.params, self.state))

    def restore(self, folder: Path, done: int) -> None:
        """Go on from a checkpoint, of as many devices as it may be."""
        target = self.params, sharding.abstract_state(self.tx, self.params, self.mesh)
        with ocp.StandardCheckpointer() as checkpointer:
            self.params, self.state = checkpointer.restore(folder, described(target))
        self.done = done


def described(tree):
    """Return shapes, types and shardings of a tree of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def report(name: str, run: Run, value: float) -> None:
    """Print how a run ended."""
    share = float(accuracy(jax.tree.map(np.asarray, run.params), TEST))
    print(f"{name:<24} loss {value:.6f}  test accuracy {share:.3f}")


def difference(one: Run, other: Run) -> float:
    """Return the largest difference between parameters, relative to the largest parameter."""
    pairs = [
        (np.asarray(a), np.asarray(b))
        for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True)
    ]
    return max(np.abs(a - b).max() for a, b in pairs) / max(np.abs(a).max() for a, _ in pairs)


def main() -> None:
    devices = jax.devices()
    count = len(devices)
    mesh, size = mesh_of(devices), EXAMPLES // count * count
    print(f"{count} devices of the kind {devices[0].device_kind}, {size} examples a batch\n")

    print("1. What each device holds of the state of AdamW")
    tx = OPTIMIZERS["AdamW"]
    layout = sharding.layout(tx, PARAMS, mesh)
    print(layout)
    print(f"whole {layout.bytes:,} bytes, divided {layout.device_bytes:,} bytes\n")

    print("2. What a step moves between devices")
    for name, optimizer in OPTIMIZERS.items():
        moved = Run(optimizer, mesh, size).moved()
        print(f"{name:<12}", ", ".join(f"{n} {what}" for what, n in sorted(moved.items())) or "-")

    print("\n3. The run of all devices, and that of one")
    everywhere, alone = Run(tx, mesh, size), Run(tx, mesh_of(devices[:1]), size)
    with tempfile.TemporaryDirectory() as folder:
        everywhere.to(STEPS // 2)
        everywhere.save(Path(folder) / "middle")
        report(f"{count} devices", everywhere, everywhere.to(STEPS))
        report("1 device", alone, alone.to(STEPS))
        print(f"parameters differ by {difference(everywhere, alone):.1e} of the largest\n")

        half = devices[: max(1, count // 2)]
        print(f"4. From the checkpoint of step {STEPS // 2} on, {len(half)} devices")
        resumed = Run(tx, mesh_of(half), size)
        resumed.restore(Path(folder) / "middle", STEPS // 2)
    report(f"{count} devices, then {len(half)}", resumed, resumed.to(STEPS))
    print(f"parameters differ by {difference(everywhere, resumed):.1e} of the largest")


if __name__ == "__main__":
    main()
