"""Time of a step with parameters and gradients in bfloat16, against float32 in the same rounds.

Moments are float32 in both, as far as a contender can store them so. optlab's and the hand-written
ones are. Optax's `mu_dtype` does it for the first moment, while its second moment has the type of
the parameters; the bytes of state show it.
"""

from collections.abc import Iterator

import jax.numpy as jnp

from benchmarks.cases import CASES, Case
from benchmarks.contenders import BASE, JAX_PEERS, NATIVE_PEERS, JaxStep
from benchmarks.options import Options
from benchmarks.report import Record, Section, by_columns, spread
from benchmarks.shapes import Arrays, describe, shapes_of, start
from benchmarks.timing import Disagreement, check_agreement, measure, quantiles, ratio

MEASURED = ("adamw", "clip-adamw")
"""The names of the measured cases."""

EXTRA = {peer: {"mu_dtype": jnp.float32} for peer in ("optax", "optax-native")}
"""Options that store in float32 what can be stored so."""

TYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

COLUMNS = {
    "case": lambda r: r["case"],
    "contender": lambda r: r["contender"],
    "parameters": lambda r: r["type"],
    "state, bytes a parameter": lambda r: f"{r['state_bytes_per_param']:.1f}",
    "ms": lambda r: f"{r['ms']['50%']:.3g}",
    "speed / float32's": lambda r: spread(r["speed_to_float32"]),
    f"speed / {BASE}'s": lambda r: spread(r["speed"]),
}


def sections(options: Options) -> Iterator[Section]:
    """Yield one section for each network; where time is limited, for the first one."""
    for shapes in options.shapes[:1] if options.clock.is_limited else options.shapes:
        yield Section(
            part="types",
            title=f"Types of parameters on {describe(shapes)}, donated, "
            f"{options.rounds_text} rounds",
            results=_results(options, shapes),
            table=lambda records: by_columns(COLUMNS, records),
        )


def _results(options: Options, shapes: str) -> Iterator[Record | Disagreement]:
    params, gradients = start(shapes_of(shapes))
    peers = [peer for peer in (*JAX_PEERS, *NATIVE_PEERS) if peer in options.peers]
    for number, name in enumerate(MEASURED):
        if options.clock.is_over():
            return
        until = options.clock.part(len(MEASURED) - number)
        try:
            yield from _compare(options, shapes, CASES[name], peers, params, gradients, until)
        except Disagreement as error:
            # A new exception, because the traceback of `error` holds arrays.
            yield Disagreement(f"{name}: {error}")


def _compare(
    options: Options,
    shapes: str,
    case: Case,
    peers: list[str],
    params: Arrays,
    gradients: Arrays,
    until: float,
) -> Iterator[Record]:
    contenders = {}
    for type_name, dtype in TYPES.items():
        shared = {name: jnp.array(g, dtype) for name, g in gradients.items()}
        same_type = {
            (peer, type_name): JaxStep(
                f"{peer} {type_name}",
                case.functions(peer, **EXTRA.get(peer, {})),
                params,
                shared,
                donate=True,
                dtype=dtype,
            )
            for peer in peers
        }
        rounded = [p.astype(dtype) for p in params.values()]
        check_agreement([*same_type.values()], rounded, shared, float(jnp.finfo(dtype).eps))
        contenders |= same_type
    samples = measure([*contenders.values()], options.rounds, options.warm_ups, until=until)
    size = sum(p.size for p in params.values())
    for (peer, type_name), contender in contenders.items():
        yield {
            "part": "types",
            "shapes": shapes,
            "case": case.name,
            "contender": peer,
            "type": type_name,
            "state_bytes_per_param": contender.state_bytes() / size,
            "ms": quantiles(1e3 * samples.seconds[contender.name]),
            "speed_to_float32": ratio(samples.seconds, f"{peer} float32", contender.name),
            "speed": ratio(samples.seconds, f"{BASE} {type_name}", contender.name),
            "rounds": len(samples.seconds[contender.name]),
            "seconds": samples.seconds[contender.name].tolist(),
            "steps_per_sample": samples.steps,
        }
