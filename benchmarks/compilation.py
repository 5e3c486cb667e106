"""Time to a first step: tracing, lowering and compiling, by the number of leaves.

JAX's caches are emptied before each measurement, and its cache on disk is off. The loops of
`optlab.native` are compiled before. Contenders take turns; the ratio to the base is computed within
each turn.
"""

import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import CASES, Case, Functions
from benchmarks.contenders import BASE, JAX_PEERS, NATIVE_PEERS, UNTOUCHED, functions_of
from benchmarks.options import Options
from benchmarks.report import Record, Section, by_columns, spread
from benchmarks.shapes import Shapes, many
from benchmarks.timing import quantiles, ratio

MEASURED = ("adamw", "clip-adamw")
"""The names of the measured cases."""

STAGES = ("trace", "lower", "compile")

COLUMNS = {
    "case": lambda r: r["case"],
    "leaves": lambda r: str(r["leaves"]),
    "contender": lambda r: r["contender"],
    **{f"{stage}, s": lambda r, stage=stage: f"{r[stage]['50%']:.3f}" for stage in STAGES},
    "sum, s": lambda r: f"{r['sum']['50%']:.3f}",
    f"speed / {BASE}'s": lambda r: spread(r["speed"]),
}


def sections(options: Options) -> Iterator[Section]:
    """Yield the only section."""
    yield Section(
        part="compile",
        title=f"Time to a first step, leaves of 3500 numbers, donated, {options.compilations} "
        "compilations each",
        results=_results(options),
        table=lambda records: by_columns(COLUMNS, records),
    )


def _results(options: Options) -> Iterator[Record]:
    peers = [peer for peer in (*JAX_PEERS, *NATIVE_PEERS, UNTOUCHED) if peer in options.peers]
    _stages(CASES["sgd"].functions(BASE), many(1))  # the first compilation also loads modules
    for count in options.leaf_counts:
        for name in MEASURED:
            if options.clock.is_over():
                return
            yield from _compare(CASES[name], count, peers, options.compilations)


def _compare(case: Case, count: int, peers: list[str], turns: int) -> Iterator[Record]:
    stages_by_peer = {peer: [] for peer in peers}
    rng = np.random.default_rng(0)
    for peer in peers:
        if peer in NATIVE_PEERS:
            _stages(functions_of(peer, case), many(2))
    for _ in range(turns):
        for peer in rng.permutation(peers):
            stages_by_peer[peer].append(_stages(functions_of(peer, case), many(count)))
    seconds = {peer: np.array(stages) for peer, stages in stages_by_peer.items()}
    sums = {peer: stages.sum(axis=1) for peer, stages in seconds.items()}
    for peer in peers:
        yield {
            "part": "compile",
            "case": case.name,
            "leaves": count,
            "contender": peer,
            **dict(zip(STAGES, map(quantiles, seconds[peer].T), strict=True)),
            "sum": quantiles(sums[peer]),
            "speed": ratio(sums, BASE, peer),
            "compilations": turns,
        }


def _stages(functions: Functions, shapes: Shapes) -> list[float]:
    """Return the seconds of each stage, starting with empty caches."""
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    state = jax.eval_shape(functions.init, params)
    jax.clear_caches()
    clock = [time.perf_counter()]
    traced = jax.jit(functions.step, donate_argnums=(0, 1)).trace(params, state, params)
    clock.append(time.perf_counter())
    lowered = traced.lower()
    clock.append(time.perf_counter())
    lowered.compile()
    clock.append(time.perf_counter())
    return np.diff(clock).tolist()
