"""How fast the device computes: steps, rules on matrices, and lanes of a sweep.

All contenders of a case take turns in random order. Each sample waits for the device before and
after it, PyTorch with `torch.cuda.synchronize`, and has enough steps to last some milliseconds. The
first step of each is timed apart: it traces, lowers and compiles.
"""

import functools
import gc
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optlab
from benchmarks import matrices
from benchmarks.accelerator._run import Item
from benchmarks.cases import CASES, Case, chained
from benchmarks.contenders import BASE, JAX_PEERS, Contender, JaxStep, available, contender
from benchmarks.report import Record
from benchmarks.shapes import Arrays, gpt2_matrices, shapes_of, start
from benchmarks.timing import (
    Disagreement,
    Samples,
    check_agreement,
    measure,
    quantiles,
    ratio,
)
from optlab import lab

PEERS = (BASE, "optlab", "by-hand", "torch-fused", "torch-foreach", "roofline")
FEWER = (BASE, "optlab", "torch-fused", "torch-foreach", "roofline")
"""The contenders on 1000 leaves, which take long to compile."""

COMPARED = 100_000
"""How many numbers of each array are compared; to copy all of them to the host would take long."""

ROUNDS, QUICK_ROUNDS = 20, 2
WARM_UPS = 3

ORDER = (
    ("gpt2", "adamw", 0.6),
    ("gpt2", "clip-adamw", 0.6),
    ("many", "adamw", 0.6),
    ("resnet50", "adamw", 0.65),
    ("many", "clip-adamw", 0.65),
    ("gpt2", "clip-adamw-average", 0.7),
    ("resnet50", "clip-momentum", 0.7),
)
LAST = (("gpt2", "sgd", 0.95), ("resnet50", "clip-adamw", 0.95), ("gpt2", "momentum", 0.95))
"""Parameters, cases, and the share of the time after which they do not begin; LAST if time is left,
after everything else."""


def speed(quick: bool) -> list[Item]:
    """Return the items: what matters most goes first."""

    def step(shapes: str, case: str, until: float) -> Item:
        return Item(
            "step", f"{case} on {shapes}", lambda: _steps(shapes, CASES[case], quick), until
        )

    muon = Item("matrices", "Muon", lambda: _matrices(("muon", "adamw"), quick), 0.85)
    sweep = Item("sweep", "lanes", lambda: _sweeps(quick), 0.9)
    if quick:
        return [step("tiny", "adamw", 1.0), muon, sweep]
    soap = Item("matrices", "SOAP", lambda: _matrices(("soap, one side",), quick), 0.9)
    return [*(step(*one) for one in ORDER), muon, sweep, *(step(*one) for one in LAST), soap]


def _steps(shapes: str, case: Case, quick: bool) -> Iterator[Record]:
    gc.collect()
    params, arrays = _start(shapes)
    shared = {name: jnp.asarray(g) for name, g in arrays.items()}
    contenders, first, failures = [], {}, []
    for peer in FEWER if shapes == "many" else PEERS:
        try:  # one that cannot run must not cost the others
            if not _is_fair(peer, case) or (quick and peer not in JAX_PEERS):
                continue
            one = contender(peer, case, params, shared, donate=True)
            first[peer] = None if peer == "roofline" else _first_step(one)
        except Exception as error:
            failures.append(f"{peer}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            continue
        contenders.append(one)
    differences = {}
    try:
        optimizers = [one for one in contenders if one.name != "roofline"]
        begin = list(params.values())
        differences = check_agreement(optimizers, begin, shared, limit=COMPARED)
    except Disagreement as error:  # the times are worth having, with this line beside them
        failures.append(str(error))
    samples = measure(contenders, QUICK_ROUNDS if quick else ROUNDS, WARM_UPS)
    yield from _records(shapes, case, samples, differences, first)
    if failures:
        raise Disagreement("; ".join(failures))


@functools.cache
def _start(shapes: str) -> tuple[Arrays, Arrays]:
    return start(shapes_of(shapes))


def _is_fair(peer: str, case: Case) -> bool:
    """Whether a contender is there, and on the device that JAX uses."""
    if not available(peer, case):
        return False
    if not peer.startswith("torch") or jax.default_backend() == "cpu":
        return True
    import torch

    return torch.cuda.is_available()


def _first_step(one: Contender) -> float:
    """Return the seconds of a contender's first step, with compilation."""
    began = time.perf_counter()
    one.advance(1)
    one.wait()
    return time.perf_counter() - began


def _records(
    shapes: str,
    case: Case,
    samples: Samples,
    differences: dict[str, float],
    first: dict[str, float | None],
) -> Iterator[Record]:
    fused = "torch-fused"
    for name, seconds in samples.seconds.items():
        yield {
            "shapes": shapes,
            "case": case.name,
            "contender": name,
            "ms": quantiles(1e3 * seconds),
            "speed": ratio(samples.seconds, BASE, name),
            "roofline": ratio(samples.seconds, "roofline", name),
            "to_torch": ratio(samples.seconds, fused, name),
            "difference": differences.get(name),
            "first": first[name],
            "rounds": len(seconds),
            "steps_per_sample": samples.steps,
        }


def _matrices(names: Sequence[str], quick: bool) -> Iterator[Record]:
    """Compare rules on matrices with Optax's Muon, which makes the same updates as optlab's."""
    gc.collect()
    params, arrays = start(gpt2_matrices(1, 48) if quick else gpt2_matrices())
    gradients = {name: jnp.asarray(g) for name, g in arrays.items()}
    contenders, first = [], {}
    for name in (matrices.BASE, *names):
        functions = chained([matrices.CONTENDERS[name]()])
        contenders.append(JaxStep(name, functions, params, gradients, donate=True))
        first[name] = _first_step(contenders[-1])
    differences, failure = {}, None
    try:
        same = [one for one in contenders if one.name in (matrices.BASE, "muon")]
        differences = check_agreement(same, list(params.values()), gradients)
    except Disagreement as error:
        failure = error
    samples = measure(contenders, 1 if quick else 5, 1)
    for name, seconds in samples.seconds.items():
        yield {
            "contender": name,
            "ms": quantiles(1e3 * seconds),
            "speed": ratio(samples.seconds, matrices.BASE, name),
            "first": first[name],
            "difference": differences.get(name),
            "rounds": len(seconds),
        }
    if failure:
        raise failure


def _sweeps(quick: bool) -> Iterator[Record]:
    """Time sweeps of one and of many trials at a time, each after one of the same size."""
    updates = 4 if quick else 300
    base = None
    for lanes in (2,) if quick else (1, 16, 64):
        seconds = []
        for seed in (0,) if quick else (0, 1):
            began = time.perf_counter()
            _sweep(lanes, updates, seed)
            seconds.append(time.perf_counter() - began)
        each = lanes / min(seconds)
        base = base or each
        yield {
            "lanes": lanes,
            "updates": updates,
            "seconds": min(seconds),
            "trials_a_second": each,
            "speed": each / base,
        }


def _sweep(lanes: int, updates: int, seed: int) -> None:
    space = {"learning_rate": lab.LogUniform(1e-4, 1e-2)}
    lab.sweep(
        _task(),
        optlab.adamw,
        space,
        trials=lanes,
        lanes=lanes,
        seed=seed,
        steps=updates,
        eval_every=updates // 2,
    )


def _task() -> lab.Task:
    """Return a classifier of noise, which needs no data and no further package."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((1024, 64)).astype(np.float32)
    labels = rng.integers(10, size=1024)
    widths = (64, 128, 128, 10)

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, len(widths) - 1)
        sizes = itertools.pairwise(widths)
        return {
            f"layer{i}": {
                "kernel": jax.random.normal(key, (m, n)) * (2 / m) ** 0.5,
                "bias": jnp.zeros(n),
            }
            for i, (key, (m, n)) in enumerate(zip(keys, sizes, strict=True))
        }, ()

    def loss_of(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        *hidden, last = params.values()
        for layer in hidden:
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
        logits = x @ last["kernel"] + last["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    return lab.Task(
        name="noise",
        init=init,
        loss=lambda params, state, batch, key: (loss_of(params, *batch), state),
        batch=lab.shuffled_batches((inputs, labels), 64),
        evaluate=lambda params, state, data: {"loss": loss_of(params, *data)},
        splits={"validation": (inputs[:256], labels[:256])},
    )
