"""Compare AdamW, Muon and SOAP on the character transformer, over updates and over seconds.

Model and text are those of example 05. Each optimizer gets the same search: short runs at the same
rates, its other settings at their defaults, the best rate by the validation text. At that rate it
then trains for longer, from several seeds. All take turns, one part of a run each, so that whatever
else the computer does slows all of them alike. Compilation and evaluations do not count as seconds.
As cheap updates leave time for more of them, AdamW also trains for as many seconds as each other.

On two cores of an Intel Xeon, which other programs used as well, 800 updates ended at 2.49 ± 0.01
bits a character for AdamW, 2.37 ± 0.02 for Muon and 2.22 ± 0.02 for SOAP. An update took 8.1, 9.6
and 14.3 ms with its gradient. Given as many seconds, AdamW reached 2.38 ± 0.01 beside Muon, and
2.18 ± 0.01 beside SOAP: over seconds Muon ties with AdamW, and SOAP falls behind. The more a
gradient costs, the less the additional work of Muon and SOAP weighs, and here it is cheap.

The script prints each step, and draws muon_transformer.png; it takes some four minutes on two CPU
cores. With --quick it only shows that it runs:

    python examples/07_muon_transformer.py
"""

import argparse
import importlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

# SOAP decomposes small matrices with OpenBLAS, whose threads wait for one another where other
# programs use the cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import optlab
from optlab import lab

transformer = importlib.import_module("05_character_transformer")

OPTIMIZERS = {"adamw": optlab.adamw, "muon": optlab.muon, "soap": optlab.soap}
LONGER = {"muon": "adamw, muon's seconds", "soap": "adamw, soap's seconds"}
COLORS = {"adamw": "#0072B2", "muon": "#D55E00", "soap": "#009E73"}


class Sizes(NamedTuple):
    """The sizes of the experiment; a run is evaluated after each of its parts."""

    rates: int = 8
    trial_steps: int = 200
    steps: int = 800
    part: int = 40
    seeds: int = 3


QUICK = Sizes(rates=2, trial_steps=20, steps=40, part=10, seeds=2)


def schedule(rate, steps) -> optax.Schedule:
    """Return a rise over a tenth of the run and a cosine; rate and steps may be traced."""
    shape = optlab.schedules.warmup_cosine(1.0, warmup_steps=100, decay_steps=1000)
    return lambda step: rate * shape(1000 * step / steps)


class Contender:
    """One optimizer, compiled once for all its runs: (rate, steps, seed) → curves.

    Attributes:
        compilation: the seconds that it took.
    """

    def __init__(self, task: lab.Task, make: Callable, part: int):
        self._task, self._make, self._part = task, make, part
        self._evaluate = jax.jit(task.evaluate)
        arguments = jax.random.key(0), jnp.float32(0), jnp.int32(1)
        began = time.perf_counter()
        self._begin = jax.jit(self._beginning).lower(*arguments).compile()
        run = self._begin(*arguments)
        advance = jax.jit(self._after_part, donate_argnums=0)
        self._advance = advance.lower(run, jnp.int32(0), *arguments).compile()
        self.compilation = time.perf_counter() - began

    def run(self, rate: float, steps: int, seed: int) -> Iterator[tuple[float, float]]:
        """Yield for each part its seconds, and then the bits a character on the validation text."""
        arguments = jax.random.key(seed), jnp.float32(rate), jnp.int32(steps)
        run = jax.block_until_ready(self._begin(*arguments))
        for first in range(0, steps, self._part):
            began = time.perf_counter()
            run = jax.block_until_ready(self._advance(run, jnp.int32(first), *arguments))
            seconds = time.perf_counter() - began
            params, _ = run
            metrics = self._evaluate(params, (), self._task.splits["validation"])
            yield seconds, float(metrics["bits"])

    def _beginning(self, key, rate, steps):
        params, _ = self._task.init(key)
        return params, self._make(schedule(rate, steps)).init(params)

    def _after_part(self, run, first, key, rate, steps):
        """Return a run after one part more."""
        tx = self._make(schedule(rate, steps))
        gradient = jax.grad(self._task.loss, has_aux=True)

        def update(run, step):
            params, state = run
            grads, _ = gradient(params, (), self._task.batch(key, step), None)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(update, run, first + jnp.arange(self._part))[0]


class Curves(NamedTuple):
    """The runs of one optimizer at its best rate; the arrays are (seeds, parts).

    Attributes:
        rate: the peak of the schedule.
        part: updates from one evaluation to the next.
        seconds: what the updates of each part took.
        bits: bits a character of the validation text after each part.
    """

    rate: float
    part: int
    seconds: np.ndarray
    bits: np.ndarray

    @property
    def updates(self) -> np.ndarray:
        """Updates done after each part: (parts,)."""
        return self.part * np.arange(1, self.bits.shape[1] + 1)

    @property
    def elapsed(self) -> np.ndarray:
        """Seconds of training until after each part, the median over seeds: (parts,)."""
        return np.median(self.seconds.cumsum(1), axis=0)

    @property
    def seconds_per_update(self) -> float:
        """The median over all parts."""
        return float(np.median(self.seconds)) / self.part


def train_in_turns(
    contenders: Mapping[str, Contender], rates: Mapping[str, float], steps: int, sizes: Sizes
) -> dict[str, Curves]:
    """Train with all contenders, one part of a run each in turn, from one seed after the other."""
    results = []
    for seed in range(sizes.seeds):
        runs = [one.run(rates[name], steps, seed) for name, one in contenders.items()]
        results.append(list(zip(*runs, strict=True)))
    seconds, bits = np.moveaxis(np.array(results), (3, 2), (0, 1))  # (contenders, seeds, parts)
    return {
        name: Curves(rates[name], sizes.part, seconds[i], bits[i])
        for i, name in enumerate(contenders)
    }


def search(contenders: Mapping[str, Contender], sizes: Sizes) -> dict[str, float]:
    """Return the best rate of each; print the bits a character that short runs end with."""
    rates = np.geomspace(1e-3, 1e-1, sizes.rates)
    print("rate    " + "".join(f"{name:>9}" for name in contenders))
    ends = []
    for rate in rates:
        trial = sizes._replace(seeds=1)
        curves = train_in_turns(
            contenders, dict.fromkeys(contenders, rate), sizes.trial_steps, trial
        )
        ends.append([one.bits[0, -1] for one in curves.values()])
        print(f"{rate:<8.2g}" + "".join(f"{bits:9.3f}" for bits in ends[-1]))
    best = np.nanargmin(ends, axis=0)
    return dict(zip(contenders, map(float, rates[best]), strict=True))


def optimizer_of(name: str) -> str:
    """Return which optimizer runs under a name: "adamw" for "adamw, muon's seconds"."""
    return name.split(",")[0]


def print_table(curves: Mapping[str, Curves], state_bytes: Mapping[str, int]) -> None:
    print(f"{'':22}{'rate':>7}{'bits':>17}{'updates':>9}{'ms each':>9}{'seconds':>9}", end="")
    print(f"{'state bytes':>13}")
    for name, one in curves.items():
        bits = str(lab.Spread.of(one.bits[:, -1]))
        each = 1e3 * one.seconds_per_update
        line = f"{name:22}{one.rate:7.2g}{bits:>17}{one.updates[-1]:9}{each:9.1f}"
        print(line + f"{one.elapsed[-1]:9.1f}{state_bytes[optimizer_of(name)]:13,}")


def draw(curves: Mapping[str, Curves]) -> Figure:
    """Draw the bits over updates and over seconds: the mean over seeds, and the range."""
    figure = Figure(figsize=(12, 5), dpi=150, layout="constrained")
    over_updates, over_seconds = figure.subplots(1, 2, sharey=True)
    styles = dict(zip(LONGER.values(), (":", "--"), strict=True))
    for name, one in curves.items():
        color = COLORS[optimizer_of(name)]
        style = {"color": color, "linestyle": styles.get(name, "-")}
        for ax, x in ((over_updates, one.updates), (over_seconds, one.elapsed)):
            ax.plot(x, one.bits.mean(0), **style, label=f"{name}, rate {one.rate:.2g}")
            ax.fill_between(x, one.bits.min(0), one.bits.max(0), color=color, alpha=0.15)
    over_updates.set(xlabel="updates", ylabel="bits a character, validation")
    over_seconds.set(xlabel="seconds of training, without compilation and evaluations")
    over_updates.legend(frameon=False, title="mean and range over seeds")
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare AdamW, Muon and SOAP.")
    parser.add_argument("--quick", action="store_true", help="only show that it runs")
    sizes = QUICK if parser.parse_args().quick else Sizes()
    task = transformer.text_task()
    params = jax.eval_shape(task.init, jax.random.key(0))[0]

    print("1. What does Muon do with each parameter?")
    print(optlab.describe(optlab.muon(1e-3), params))

    contenders = {name: Contender(task, make, sizes.part) for name, make in OPTIMIZERS.items()}
    seconds = ", ".join(f"{name} {one.compilation:.0f}" for name, one in contenders.items())
    print(f"\n2. Equal searches, {sizes.trial_steps} updates each (seconds to compile: {seconds})")
    rates = search(contenders, sizes)

    print("\n3. A longer run of each at its best rate")
    curves = train_in_turns(contenders, rates, sizes.steps, sizes)
    alone = {"adamw": contenders["adamw"]}
    for name, label in LONGER.items():
        ratio = curves[name].seconds_per_update / curves["adamw"].seconds_per_update
        steps = round(ratio * sizes.steps / sizes.part) * sizes.part
        curves[label] = train_in_turns(alone, rates, steps, sizes)["adamw"]
    state_bytes = {
        name: sum(one.state_bytes for one in optlab.describe(make(1e-3), params))
        for name, make in OPTIMIZERS.items()
    }
    print_table(curves, state_bytes)
    draw(curves).savefig("muon_transformer.png")


if __name__ == "__main__":
    main()
