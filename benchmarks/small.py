"""Small models: the time of a step on 10⁴ parameters, where what surrounds the arithmetic is all.

Three layers of 64 × 64, as in reinforcement learning and in teaching. Every rule that Optax has,
too, and the usual chains, beside Optax's: compiled by `jit` with the memory donated, and called
from Python as it is, which is how one looks into an update. Each ratio is that of the medians'
rounds, with its quartiles. The end names the worst beside the best.

The imports are timed in processes of their own, in turns: one makes an optimizer of Optax's, the
other of optlab's. The time is that of the processor since the process began, which other programs
hardly change.
"""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import jax.numpy as jnp
import numpy as np
import optax

import optlab
from benchmarks.cases import CASES, Functions, chained
from benchmarks.contenders import BASE, JaxStep
from benchmarks.options import Options
from benchmarks.report import Record, Section, Table, by_columns, spread
from benchmarks.settings import LEARNING_RATE, MAX_NORM
from benchmarks.shapes import Shapes, num_params, start
from benchmarks.timing import Disagreement, check_agreement, measure, quantiles, ratio

FORMS = {"compiled": True, "from Python": False}
"""How a step is called, and whether `jit` compiles it."""

MORE = {
    "lion": {
        "optax": [partial(optax.lion, LEARNING_RATE)],
        "optlab": [partial(optlab.lion, LEARNING_RATE)],
    },
    "clip-adam": {
        "optax": [
            partial(optax.clip_by_global_norm, MAX_NORM),
            partial(optax.adam, LEARNING_RATE),
        ],
        "optlab": [
            partial(optlab.clip_by_global_norm, MAX_NORM),
            partial(optlab.adam, LEARNING_RATE),
        ],
    },
    "adafactor": {
        "optax": [partial(optax.adafactor, LEARNING_RATE)],
        "optlab": [partial(optlab.adafactor, LEARNING_RATE)],
    },
    "lamb": {
        "optax": [partial(optax.lamb, LEARNING_RATE)],
        "optlab": [partial(optlab.lamb, LEARNING_RATE)],
    },
    "lars": {
        "optax": [partial(optax.lars, LEARNING_RATE)],
        "optlab": [partial(optlab.lars, LEARNING_RATE)],
    },
    "muon": {
        "optax": [partial(optax.contrib.muon, LEARNING_RATE)],
        "optlab": [partial(optlab.muon, LEARNING_RATE)],
    },
}
"""Further rules, whose defaults differ between the two, so that results are not compared."""

IMPORTS = {
    "optax": "import optax; optax.adamw(1e-3)",
    "optlab": "import optlab; optlab.adamw(1e-3)",
}

COLUMNS = {
    "case": lambda r: r["case"],
    "called": lambda r: r["form"],
    "Optax, µs": lambda r: f"{1e6 * r['optax_seconds']['50%']:.0f}",
    "optlab, µs": lambda r: f"{1e6 * r['optlab_seconds']['50%']:.0f}",
    "speed / optax's": lambda r: spread(r["speed"]),
}


def layers(count: int = 3, width: int = 64) -> Shapes:
    """Return the shapes of dense layers."""
    shapes: Shapes = {}
    for i in range(count):
        shapes |= {f"layer{i}.bias": (width,), f"layer{i}.kernel": (width, width)}
    return shapes


def sections(options: Options) -> Iterator[Section]:
    """Yield the steps, and then the imports."""
    shapes = layers()
    title = f"{len(shapes)} leaves, {num_params(shapes):,} parameters, {options.rounds_text} rounds"
    yield Section("small", f"Small models, {title}", _steps(options, shapes), _table)
    processes = 1 if options.quick else 9
    yield Section(
        "small",
        f"Import of the package and its first optimizer, {processes} processes each",
        () if options.clock.is_over() else _imports(processes),
        lambda records: by_columns(
            {
                "package": lambda r: r["contender"],
                "seconds": lambda r: spread(r["seconds"]),
                "time / optax's": lambda r: spread(r["time"]),
            },
            records,
        ),
    )


def _steps(options: Options, shapes: Shapes) -> Iterator[Record | Disagreement]:
    params, arrays = start(shapes)
    gradients = {name: jnp.asarray(g) for name, g in arrays.items()}
    names = [case.name for case in options.cases]
    for name in [*names, *(() if options.quick else MORE)]:
        for form, is_compiled in FORMS.items():
            if options.clock.is_over():
                return
            if (name, is_compiled) == ("muon", False):
                continue  # Optax's takes seconds
            contenders = [
                _Step(peer, _functions(name, peer), params, gradients, is_compiled)
                for peer in (BASE, "optlab")
            ]
            try:
                if name in CASES:
                    check_agreement(contenders, list(params.values()), gradients)
            except Disagreement as error:
                yield Disagreement(f"{name}: {error}")
                continue
            samples = measure(contenders, options.rounds, options.warm_ups)
            yield {
                "part": "small",
                "case": name,
                "form": form,
                "optax_seconds": quantiles(samples.seconds[BASE]),
                "optlab_seconds": quantiles(samples.seconds["optlab"]),
                "speed": ratio(samples.seconds, BASE, "optlab"),
                "rounds": len(samples.seconds[BASE]),
                "steps_per_sample": samples.steps,
            }


class _Step(JaxStep):
    """A step, compiled or not."""

    def __init__(self, name, functions, params, gradients, is_compiled) -> None:
        super().__init__(name, functions, params, gradients, donate=True)
        if not is_compiled:
            self._step = functions.step


def _functions(name: str, peer: str) -> Functions:
    if name in CASES:
        return CASES[name].functions(peer)
    return chained([make() for make in MORE[name][peer]])


def _table(records: list[Record]) -> Table:
    """Return a row for each case and form, and below them the worst and the best."""
    table = by_columns(COLUMNS, records)
    for form in FORMS:
        ranked = sorted((r for r in records if r["form"] == form), key=lambda r: r["speed"]["50%"])
        if ranked:
            for word, r in (("worst", ranked[0]), ("best", ranked[-1])):
                table.append(
                    [f"{word}: {r['case']}", *(cell(r) for cell in list(COLUMNS.values())[1:])]
                )
    return table


def _imports(processes: int) -> Iterator[Record]:
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for number in range(processes + (processes > 1)):
        for name, code in IMPORTS.items():
            timed = f"import time; {code}; print(time.process_time())"
            done = subprocess.run(
                [sys.executable, "-c", timed], capture_output=True, text=True, check=True
            )
            if number or processes == 1:  # the round before fills the caches of the disk
                seconds[name].append(float(done.stdout))
    arrays = {name: np.array(values) for name, values in seconds.items()}
    for name in IMPORTS:
        yield {
            "part": "small",
            "form": "import",
            "contender": name,
            "seconds": quantiles(arrays[name]),
            "time": quantiles(arrays[name] / arrays["optax"]),
        }
