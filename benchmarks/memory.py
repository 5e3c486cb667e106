"""Memory of compiled steps, according to XLA; nothing is executed.

Temporary memory is given as a share of the parameters' bytes. Bytes accessed are XLA's own
estimate: each of its kernels reads its operands and writes its results once. The ideal is a step
that is a single such kernel.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks.cases import Case
from benchmarks.contenders import JAX_PEERS, NATIVE_PEERS
from benchmarks.options import Options
from benchmarks.report import MISSING, Record, Section, by_columns
from benchmarks.shapes import Shapes, describe, num_params, shapes_of


def _bytes_each(r: Record) -> str:
    accessed = r["accessed_bytes_per_param"]
    return MISSING if accessed is None else f"{accessed:.1f}"


COLUMNS = {
    "case": lambda r: r["case"],
    "contender": lambda r: r["contender"],
    "temporary / parameters": lambda r: f"{r['temporary_bytes'] / r['param_bytes']:.1%}",
    "new / parameters": lambda r: f"{r['new_bytes'] / r['param_bytes']:.0%}",
    "bytes accessed a parameter": _bytes_each,
    "ideal": lambda r: f"{r['ideal_bytes_per_param']}",
}


def sections(options: Options) -> Iterator[Section]:
    """Yield one section for each network, with and without donation."""
    for name in options.shapes:
        for donate in options.donations:
            yield Section(
                part="memory",
                title=f"Memory of a step on {describe(name)}, {'' if donate else 'not '}donated",
                results=_results(options, name, donate),
                table=lambda records: by_columns(COLUMNS, records),
            )


def _results(options: Options, name: str, donate: bool) -> Iterator[Record]:
    for case in options.cases:
        if options.clock.is_over():
            return
        for peer in (*JAX_PEERS, *NATIVE_PEERS):
            if peer in options.peers:
                yield {
                    "part": "memory",
                    "shapes": name,
                    "donated": donate,
                    "case": case.name,
                    "contender": peer,
                } | _account(case, peer, shapes_of(name), donate)


def _account(case: Case, peer: str, shapes: Shapes, donate: bool) -> Record:
    """Return the bytes: temporary, of outputs that are not donated arguments, and accessed."""
    functions = case.functions(peer)
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    state = jax.eval_shape(functions.init, params)
    step = jax.jit(functions.step, donate_argnums=(0, 1) if donate else ())
    compiled = step.lower(params, state, params).compile()
    memory = compiled.memory_analysis()
    accessed = (compiled.cost_analysis() or {}).get("bytes accessed")
    if peer in NATIVE_PEERS:
        accessed = None  # XLA does not know what a loop reads and writes
    size = num_params(shapes)
    return {
        "param_bytes": 4 * size,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "new_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "accessed_bytes_per_param": None if accessed is None else accessed / size,
        "ideal_bytes_per_param": 4 * (case.reads + case.writes),
    }
