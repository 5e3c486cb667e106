"""Time and memory of a step within a wrapper, against the step that it wraps.

The step is AdamW with gradients clipped by their global norm, donated, computed by XLA and in the
loops of `optlab.native.step`. A sample of `accumulate` is as many calls as it makes one step of, so
that its figure is a mean over those that add a gradient and the one that makes the step. `monitor`
has one group. All contenders of a wrapper take turns; ratios are medians and quartiles of rounds.
Temporary memory is what XLA's analysis says of the compiled step, as a share of the parameters. The
aims are a time of at most 1.25 and a temporary memory of at most 1%.

    python -m benchmarks.wrappers
"""

import argparse
import gc
import os
from collections.abc import Iterator, Sequence
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before jaxlib loads LAPACK

import jax.numpy as jnp

from benchmarks.cases import ACCUMULATED, WRAPPERS, chained, wrapped
from benchmarks.contenders import JaxStep
from benchmarks.environment import environment
from benchmarks.report import Record, by_columns, in_markdown, plain, spread
from benchmarks.shapes import SHAPES, Arrays, describe, shapes_of, start
from benchmarks.timing import measure, quantiles, ratio

COLUMNS = {
    "wrapper": lambda r: r["wrapper"],
    "computed by": lambda r: r["path"],
    "ms": lambda r: f"{r['ms']['50%']:.3g}",
    "time / wrapped step's": lambda r: spread(r["time"]),
    "temporary / parameters": lambda r: f"{r['temporary']:.1%}",
}


class Calls(JaxStep):
    """A contender that makes some calls for a step.

    Attributes:
        calls: the calls.
    """

    calls = 1

    def advance(self, steps: int) -> None:
        super().advance(self.calls * steps)

    def temporary(self) -> float:
        """Return the temporary memory of a step, as a share of the parameters."""
        lowered = self._step.lower(self._params, self._state, self._gradients)
        size = sum(p.nbytes for p in self._params.values())
        return lowered.compile().memory_analysis().temp_size_in_bytes / size


def compare(name: str, params: Arrays, gradients: dict[str, Any], rounds: int) -> Iterator[Record]:
    """Yield a record for each path of a wrapper."""
    within, without = wrapped(name)
    contenders = [
        Calls(f"{path} {kind}", chained([tx], None, path == "loops"), params, gradients, True)
        for path in ("XLA", "loops")
        for kind, tx in (("wrapped", within), ("plain", without))
    ]
    calls = ACCUMULATED if name == "accumulate" else 1
    for one in contenders:
        one.calls = calls
    temporary = {one.name: one.temporary() for one in contenders}
    samples = measure(contenders, rounds, warm_ups=2)
    for path in ("XLA", "loops"):
        seconds = samples.seconds[f"{path} wrapped"]
        yield {
            "wrapper": name,
            "path": path,
            "ms": quantiles(1e3 * seconds / calls),
            "time": ratio(samples.seconds, f"{path} wrapped", f"{path} plain"),
            "temporary": temporary[f"{path} wrapped"],
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all wrappers, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", choices=SHAPES, default="resnet50")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--wrappers", nargs="+", choices=WRAPPERS, default=list(WRAPPERS))
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    options = parser.parse_args(arguments)
    print(plain([[name, value] for name, value in environment().items()]))
    params, gradients = start(shapes_of(options.shapes))
    shared = {name: jnp.array(g) for name, g in gradients.items()}
    records = []
    for name in options.wrappers:
        records += compare(name, params, shared, options.rounds)
        gc.collect()
    print(f"\nWrappers on {describe(options.shapes)}, donated, {options.rounds} rounds\n")
    print((in_markdown if options.markdown else plain)(by_columns(COLUMNS, records)))


if __name__ == "__main__":
    main()
