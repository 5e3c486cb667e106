"""Rules on matrices: step, first step and state, on the hidden matrices of GPT-2.

Optax's Muon is the base. It and optlab's make the same updates here: both iterate in float32 with
the same coefficients and steps, scale alike, and without Nesterov, where Optax differs. The results
of both are compared before anything is timed. Shampoo and SOAP refresh their roots and bases every
tenth update, in blocks of 768, so that a sample of theirs is the mean over ten steps; of the others
it is the mean over two. LAPACK gets one thread: its threads and those of XLA would wait for each
other.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optlab
from benchmarks.cases import Functions, chained
from benchmarks.contenders import JaxStep
from benchmarks.options import Options
from benchmarks.report import Record, Section, by_columns, spread
from benchmarks.settings import LEARNING_RATE, WEIGHT_DECAY
from benchmarks.shapes import Shapes, gpt2_matrices, num_params, start
from benchmarks.timing import Disagreement, check_agreement, quantiles, ratio

BASE = "muon, optax"
EVERY = 10
"""Updates from one refresh of roots and bases to the next."""

_MUON = {"nesterov": False, "eps": 1e-7, "weight_decay": WEIGHT_DECAY}
_SECOND = {"precondition_frequency": EVERY, "block_size": 768}

CONTENDERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    BASE: partial(optax.contrib.muon, LEARNING_RATE, consistent_rms=0.2, **_MUON),
    "muon": partial(optlab.muon, LEARNING_RATE, **_MUON),
    "shampoo": partial(optlab.shampoo, LEARNING_RATE, **_SECOND),
    "soap": partial(optlab.soap, LEARNING_RATE, **_SECOND),
    "soap, one side": partial(optlab.soap, LEARNING_RATE, one_sided=True, **_SECOND),
    "adamw": partial(optlab.adamw, LEARNING_RATE, weight_decay=WEIGHT_DECAY),
}

COLUMNS = {
    "rule": lambda r: r["contender"],
    f"speed / {BASE}": lambda r: spread(r["speed"]),
    "time / muon": lambda r: spread(r["time"]),
    f"first step, time / {BASE}": lambda r: spread(r["first"]),
    "state / parameters": lambda r: f"{r['state_bytes'] / r['param_bytes']:.2f}",
    "temporary / parameters": lambda r: f"{r['temporary_bytes'] / r['param_bytes']:.2f}",
}


def sections(options: Options) -> Iterator[Section]:
    """Yield the only section."""
    shapes = gpt2_matrices(1, 48) if options.quick else gpt2_matrices()
    rounds = 1 if options.clock.is_limited else options.matrix_rounds
    yield Section(
        part="matrices",
        title=f"Rules on matrices, {len(shapes)} hidden matrices of GPT-2, {num_params(shapes):,} "
        f"parameters, float32, donated, {rounds} rounds",
        results=_results(options, shapes, rounds),
        table=lambda records: by_columns(COLUMNS, records),
    )


def _results(options: Options, shapes: Shapes, rounds: int) -> Iterator[Record | Disagreement]:
    if options.clock.is_over():
        return
    params, arrays = start(shapes)
    gradients = {name: jnp.asarray(g) for name, g in arrays.items()}

    def contender(name: str) -> JaxStep:
        return JaxStep(name, _functions(name), params, gradients, donate=True)

    try:
        check_agreement([contender(BASE), contender("muon")], list(params.values()), gradients)
    except Disagreement as error:
        yield error
        return
    # Shampoo and SOAP take minutes.
    slow = ("shampoo", "soap") if options.clock.is_limited else ()
    names = [name for name in CONTENDERS if not name.startswith(slow)]
    first = _first_steps(shapes, names, options.compilations)
    seconds = _seconds([contender(name) for name in names], rounds)
    for name in names:
        yield {
            "part": "matrices",
            "contender": name,
            "seconds": quantiles(seconds[name]),
            "speed": ratio(seconds, BASE, name),
            "time": ratio(seconds, name, "muon"),
            "first": ratio(first, name, BASE),
            **_memory(name, shapes),
        }


def _functions(name: str) -> Functions:
    return chained([CONTENDERS[name]()])


def _steps(name: str) -> int:
    """Return how many steps a sample has."""
    return EVERY if name.startswith(("shampoo", "soap")) else 2


def _seconds(contenders: list[JaxStep], rounds: int) -> dict[str, np.ndarray]:
    """Return the mean seconds of a step, by round; all contenders take turns in each."""
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(rounds + 1):
        for i in rng.permutation(len(contenders)):
            name, steps = contenders[i].name, _steps(contenders[i].name) if number else 1
            contenders[i].wait()
            began = time.perf_counter()
            contenders[i].advance(steps)
            contenders[i].wait()
            if number:  # the round before compiles
                seconds[name].append((time.perf_counter() - began) / steps)
    return {name: np.array(values) for name, values in seconds.items()}


def _first_steps(shapes: Shapes, names: Sequence[str], turns: int) -> dict[str, np.ndarray]:
    """Return the seconds to trace, lower and compile a step; all contenders take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(turns):
        for name in names:
            params, state = _described(name, shapes)
            jax.clear_caches()
            began = time.perf_counter()
            step = jax.jit(_functions(name).step, donate_argnums=(0, 1))
            step.lower(params, state, params).compile()
            seconds[name].append(time.perf_counter() - began)
    return {name: np.array(values) for name, values in seconds.items()}


def _described(name: str, shapes: Shapes):
    params = {key: jax.ShapeDtypeStruct(shape, jnp.float32) for key, shape in shapes.items()}
    return params, jax.eval_shape(_functions(name).init, params)


def _memory(name: str, shapes: Shapes) -> Record:
    params, state = _described(name, shapes)
    step = jax.jit(_functions(name).step, donate_argnums=(0, 1))
    memory = step.lower(params, state, params).compile().memory_analysis()
    return {
        "param_bytes": 4 * num_params(shapes),
        "state_bytes": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)),
        "temporary_bytes": memory.temp_size_in_bytes,
    }
