"""Time of a step: every case, on the parameters of real networks.

The tables show milliseconds; the speed as a multiple of the base's and of the hand-written step's;
and the share of the roofline, which is the roofline's time divided by the contender's. All ratios
are computed within rounds.
"""

import gc
from collections.abc import Iterator

import jax.numpy as jnp

from benchmarks.cases import Case
from benchmarks.contenders import (
    BASE,
    BY_HAND,
    LIMITS,
    MANY,
    UNTOUCHED,
    available,
    contender,
)
from benchmarks.options import Options
from benchmarks.report import MISSING, Record, Section, Table, by_columns, milliseconds, spread
from benchmarks.shapes import Arrays, describe, shapes_of, start
from benchmarks.timing import (
    Disagreement,
    Samples,
    check_agreement,
    measure,
    quantiles,
    ratio,
)

COLUMNS = {
    "case": lambda r: r["case"],
    "contender": lambda r: r["contender"],
    "ms": lambda r: milliseconds(r["ms"]),
    f"speed / {BASE}'s": lambda r: spread(r["speed"]),
    f"speed / {BY_HAND}'s": lambda r: spread(r["speed_to_by_hand"]),
    "of the roofline": lambda r: f"{r['roofline']['50%']:.0%}" if r["roofline"] else MISSING,
    "difference": lambda r: MISSING if r["difference"] is None else f"{r['difference']:.0e}",
}


def sections(options: Options) -> Iterator[Section]:
    """Yield one section for each network, with and without donation."""
    for shapes in options.shapes:
        arrays = start(shapes_of(shapes))
        for donate in options.donations:
            yield Section(
                part="step",
                title=f"A step on {describe(shapes)}, {'' if donate else 'not '}donated, "
                f"{options.rounds_text} rounds",
                results=_results(options, shapes, arrays, donate),
                table=_table,
                compact=_compact_table,
            )


def _results(
    options: Options, shapes: str, arrays: tuple[Arrays, Arrays], donate: bool
) -> Iterator[Record | Disagreement]:
    for number, case in enumerate(options.cases):
        if options.clock.is_over():
            return
        until = options.clock.part(len(options.cases) - number)
        try:
            samples, differences = _measure(options, case, *arrays, donate, until)
        except Disagreement as error:
            # A new exception, because the traceback of `error` holds arrays.
            yield Disagreement(f"{case.name}: {error}")
            continue
        for name, seconds in samples.seconds.items():
            yield {
                "part": "step",
                "shapes": shapes,
                "donated": donate,
                "case": case.name,
                "contender": name,
                "ms": quantiles(1e3 * seconds),
                "speed": ratio(samples.seconds, BASE, name),
                "speed_to_by_hand": ratio(samples.seconds, BY_HAND, name),
                "roofline": ratio(samples.seconds, "roofline", name),
                "difference": differences.get(name),
                "rounds": len(seconds),
                "seconds": seconds.tolist(),
                "steps_per_sample": samples.steps,
            }


def _measure(
    options: Options, case: Case, params: Arrays, gradients: Arrays, donate: bool, until: float
) -> tuple[Samples, dict[str, float]]:
    """Return samples and differences, after freeing the memory of the previous case."""
    gc.collect()
    shared = {name: jnp.array(g) for name, g in gradients.items()}
    contenders = [
        contender(peer, case, params, shared, donate)
        for peer in options.peers
        if available(peer, case, donate) and (peer != UNTOUCHED or len(params) >= MANY)
    ]
    optimizers = [one for one in contenders if one.name not in LIMITS]
    differences = check_agreement(optimizers, list(params.values()), shared)
    return measure(contenders, options.rounds, options.warm_ups, until=until), differences


def _table(records: list[Record]) -> Table:
    """Return one row per result; without a hand-written step there is no ratio to it."""
    has_by_hand = any(r["speed_to_by_hand"] for r in records)
    columns = [name for name in COLUMNS if has_by_hand or BY_HAND not in name]
    return by_columns({name: COLUMNS[name] for name in columns}, records)


def _compact_table(records: list[Record]) -> Table:
    """Return one row per case: milliseconds of the base, and the speeds of the others."""
    by_case = {}
    for record in records:
        by_case.setdefault(record["case"], {})[record["contender"]] = record
    names = list(dict.fromkeys(r["contender"] for r in records if r["contender"] != BASE))
    heads = [f"{name}, × as fast" for name in names]
    to_by_hand = {"optlab", BY_HAND} <= set(names)
    if to_by_hand:
        heads.append(f"optlab / {BY_HAND}")
    table = [["case", f"{BASE}, ms", *heads]]
    for case, records_by_name in by_case.items():
        speeds = [
            spread(records_by_name[name]["speed"]) if name in records_by_name else MISSING
            for name in names
        ]
        if to_by_hand:
            speeds.append(spread(records_by_name["optlab"]["speed_to_by_hand"]))
        table.append([case, COLUMNS["ms"](records_by_name[BASE]), *speeds])
    return table
