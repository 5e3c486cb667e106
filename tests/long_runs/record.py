"""A million updates of every rule in float32, and the float64 references they are held against.

    python tests/long_runs/record.py             record the references that are missing or have
                                                 changed (about 15 s each)
    python tests/long_runs/record.py --report    run the rules and print their errors

`recorded.npz` holds what the references of the registry give at a few updates. Gradients and
parameters are prescribed, and the same to the last bit in float32 and float64. Each is the sum of
two tables of fixed-point numbers, cycled with prime lengths so that no roundings are repeated, and
the gradients are multiplied by a factor of 9 bits that drifts down and up by 257 over 500,000
updates, so that averages and sums see their input change. Coordinates differ in size from 1e-3 to
1e3.

Two errors are measured. That of a coordinate is relative to its own largest outcome in the five
updates recorded together; that of a leaf is relative to its largest element, as elsewhere in the
tests.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab import registry
from optlab.registry import Row

CHECK = "a_million_updates_keep_to_the_reference"


def _rows() -> dict[str, Row]:
    """Return the rows to run by name, of an optimizer with a direction of its own that one."""
    rows = {**registry.OPTIMIZERS, **registry.TRANSFORMATIONS}
    directions = [row.of_direction() or row for row in rows.values() if CHECK not in row.exempt]
    return {row.name: row for row in directions}


ROWS = _rows()
RECORDED = Path(__file__).with_name("recorded.npz")

CHECKPOINTS = (1_000, 10_000, 100_000, 1_000_000)
KEPT = np.array([t for last in CHECKPOINTS for t in range(last - 4, last + 1)])
"""The updates whose outcomes are recorded: the last five before each checkpoint."""
SIZE = 8


def _tables(seed: int, mean: float, sizes: np.ndarray, *lengths: int) -> tuple[np.ndarray, ...]:
    """Return tables of normal numbers of mean `mean` in sum, multiples of 2⁻⁸ times the sizes."""
    rng = np.random.default_rng(seed)
    normals = (rng.normal(mean / 2, 2**-0.5, size=(length, SIZE)) for length in lengths)
    return tuple((np.round(x * 2**8) * 2**-8 * sizes).astype(np.float32) for x in normals)


# Means that are not 0, so that averages do not cancel to nothing.
GRADIENTS = _tables(0, 0.5, 2.0 ** np.array([-10, -7, -4, -1, 1, 4, 7, 10]), 997, 991)
PARAMS = _tables(1, 1.0, np.ones(SIZE), 983, 977)


def drift(step: Any) -> Any:
    """Return 257, 256, … 1, 2, … 257 and so on, a step every 1024 updates; int or traced."""
    return 1 + abs((step >> 10) % 512 - 256)


def gradient(step: Any, tables: Any = GRADIENTS) -> Any:
    """Return the gradient after `step` updates as a float32 vector, formed without rounding."""
    return params(step, tables) * (drift(step) * np.float32(2**-8))


def params(step: Any, tables: Any = PARAMS) -> Any:
    """Return the parameters after `step` updates as a float32 vector, formed without rounding."""
    first, second = (table[step % len(table)] for table in tables)
    return first + second


def slower_decay(step: Any) -> Any:
    """Return a decay rate between 1 − 2⁻³ and 1 − 2⁻¹¹ that moves with the drift, unrounded."""
    return 1 - drift(step) * np.float32(2**-11)


def tree(vector: Any) -> dict[str, Any]:
    """Return a vector as the tree that rules are given."""
    return {"b": vector[:2], "w": vector[2:].reshape(2, 3)}


@dataclass(frozen=True)
class Case:
    """A row with options, and hyperparameters that change from update to update.

    Attributes:
        row: of the registry.
        options: arguments of the constructor.
        moving: further arguments as functions of the step, the same in float32 and float64.
    """

    row: Row
    options: Mapping[str, Any]
    moving: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)


def _case(name: str, options: Mapping[str, Any], *moving: str) -> Case:
    row = ROWS.get(name) or registry.OPTIMIZERS[name]
    options = row.arguments(**options)
    fixed = {key: value for key, value in options.items() if key not in moving}
    return Case(row, fixed, dict.fromkeys(moving, slower_decay))


CASES = {
    f"{row.name}-{i}": _case(row.name, options)
    for row in ROWS.values()
    for i, options in enumerate(row.samples)
} | {
    # Rules that act one after the other.
    "rmsprop-momentum": _case("rmsprop", {"momentum": 0.9}),
    "rmsprop-momentum-nesterov-centered": _case(
        "rmsprop", {"momentum": 0.8, "nesterov": True, "centered": True, "eps": 1e-3}
    ),
    "adam-nesterov-amsgrad": _case("adam", {"nesterov": True, "amsgrad": True}),
    # Averages over long times, and decay rates that move.
    "scale_by_adam-b2=0.9999": _case("scale_by_adam", {"b2": 0.9999}),
    "scale_by_adam-b2=0.99999": _case("scale_by_adam", {"b2": 0.99999}),
    "scale_by_adam-b1=0.9999": _case("scale_by_adam", {"b1": 0.9999}),
    "scale_by_adam-moving": _case("scale_by_adam", {}, "b1", "b2"),
    "scale_by_adam-moving-nesterov": _case("scale_by_adam", {"nesterov": True}, "b1", "b2"),
    "scale_by_rmsprop-moving": _case("scale_by_rmsprop", {}, "decay"),
    "scale_by_rmsprop-0.9999-centered": _case(
        "scale_by_rmsprop", {"decay": 0.9999, "centered": True}
    ),
    "scale_by_momentum-0.9999": _case("scale_by_momentum", {"momentum": 0.9999}),
    "scale_by_momentum-moving": _case("scale_by_momentum", {}, "momentum"),
    "params_ema-0.9999": _case("params_ema", {"decay": 0.9999}),
    "params_ema-0.99999": _case("params_ema", {"decay": 0.99999}),
    "params_ema-moving": _case("params_ema", {}, "decay"),
}


def reference_outcomes(case: Case, updates: int = CHECKPOINTS[-1]) -> np.ndarray:
    """Return the reference's outcomes at the kept updates, (kept, SIZE) float64."""
    fixed = {**case.row.fixed, **case.options}
    kept, outcomes, state = set(KEPT.tolist()), [], None
    for step in range(updates):
        g, p = (list(tree(x.astype(np.float64)).values()) for x in (gradient(step), params(step)))
        now = {name: float(value(step)) for name, value in case.moving.items()}
        outcome, state = case.row.reference(g, p, state, step + 1, **{**fixed, **now})
        if step + 1 in kept:
            outcomes.append(np.concatenate([x.ravel() for x in outcome]))
    return np.array(outcomes)


def float32_outcomes(case: Case, updates: int = CHECKPOINTS[-1]) -> np.ndarray:
    """Return the rule's own, from one scan over all updates, (kept, SIZE) float32."""
    tx = case.row.make(**case.options, **case.moving)
    block = CHECKPOINTS[0]

    def body(state, inputs):
        g, p = map(tree, inputs)
        update, state = tx.update(g, state, p)
        leaves = jax.tree.leaves(case.row.outcome(update, state))
        return state, jnp.concatenate([x.ravel() for x in leaves])

    def run_block(state, first):
        # Inputs are formed, and outcomes forgotten, a block at a time.
        steps = first + jnp.arange(block)
        inputs = jax.vmap(lambda step: (gradient(step, tables[0]), params(step, tables[1])))(steps)
        state, outcomes = jax.lax.scan(body, state, inputs)
        return state, outcomes[-5:]

    def run():
        firsts = jnp.arange(0, updates, block)
        _, outcomes = jax.lax.scan(run_block, tx.init(tree(params(0, tables[1]))), firsts)
        return outcomes[np.array([t // block - 1 for t in CHECKPOINTS if t <= updates])]

    tables = jax.tree.map(jnp.asarray, (GRADIENTS, PARAMS))
    return np.asarray(jax.jit(run)()).reshape(-1, SIZE)


def errors(got: np.ndarray, want: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest errors at each checkpoint, relative to coordinates and to leaves."""
    got, want = (x.astype(np.float64).reshape(-1, 5, SIZE) for x in (got, want))
    error, size = np.abs(got - want), np.abs(want)
    leaves = [
        part.max(2) / whole.max(2)
        for part, whole in zip(np.split(error, [2], 2), np.split(size, [2], 2), strict=True)
    ]
    return (error / size.max(1, keepdims=True)).max((1, 2)), np.max(leaves, axis=(0, 2))


def load() -> dict[str, np.ndarray]:
    """Return the recorded outcomes by the names of the cases."""
    with np.load(RECORDED) as file:
        return dict(zip(file["names"].tolist(), file["outcomes"], strict=True))


def is_current(case: Case, outcomes: np.ndarray) -> bool:
    """Whether the first 1,000 updates still give what was recorded.

    To 1e-11 of each coordinate's size: exponentials differ by a rounding between machines, and an
    optimizer's update is what it leaves of a parameter 1e4 times as large.
    """
    now = reference_outcomes(case, CHECKPOINTS[0])
    recorded = outcomes[: len(now)]
    return bool((np.abs(now - recorded) <= 1e-11 * np.abs(recorded).max(0)).all())


def record() -> None:
    """Store the outcomes of all cases, anew where they are missing or have changed."""
    old = load() if RECORDED.exists() else {}
    new = {}
    for name, case in CASES.items():
        if name in old and is_current(case, old[name]):
            new[name] = old[name]
        else:
            print(name, flush=True)
            new[name] = reference_outcomes(case)
    np.savez_compressed(RECORDED, names=np.array(list(new)), outcomes=np.array(list(new.values())))


def report() -> None:
    """Print the errors of every case at every checkpoint."""
    heads = [f"{t:,}" for t in CHECKPOINTS]
    print(f"{'largest error, relative to':34}{'a coordinate':>40}{'a leaf':>40}")
    print(f"{'after so many updates':34}" + "".join(f"{head:>10}" for head in heads * 2))
    for name, want in load().items():
        both = errors(float32_outcomes(CASES[name]), want)
        print(f"{name:34}" + "".join(f"{x:10.1e}" for x in np.ravel(both)), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", action="store_true", help="print the errors of every rule")
    report() if parser.parse_args().report else record()
