"""How good are the rates that a range test suggests? Train at them, and at a fine grid of others.

For each problem of `strangers` and each of two optimizers there is one range test with its
defaults. Full runs then train at the suggested rates and at a grid, each with a constant rate, from
seeds of which the test has used none. A rate is judged by the final validation loss, as a multiple
of the best one on the grid, in the geometric mean over seeds. A rate at which a run diverges counts
as CAP times. A refusal is no rate; refusals are counted apart.

`first` is the suggestion without confirming runs; the others are the picks named after fastai.

    python -m benchmarks.lr_range            all problems, half an hour on two CPU cores
    python -m benchmarks.lr_range --quick    two problems, one optimizer
"""

import argparse
import sys
import time

import jax
import numpy as np

from benchmarks.strangers import PROBLEMS, SEALED, task
from optlab.lab import compare, lr_range_test
from optlab.registry import OPTIMIZERS

GRID = np.geomspace(1e-4, 10, 26)  # a fifth of a decade apart
CAP = 100.0
SEEDS = (11, 12, 13)
DONE = 1e-10
"""Losses below this share of the loss before training are as good as 0."""

METHODS = ("suggested", "first", "valley", "steep", "minimum", "slide")
OTHERS = ("rmsprop", "adagrad", "lion", "adamw", "lamb", "adafactor", "soap", "muon", "lars")


def optimizers_of(name):
    """Return the optimizers with which a problem is trained; over all problems they are all."""
    index = list(PROBLEMS).index(name)
    return (("sgd", "adam"), ("momentum", OTHERS[index // 2 % len(OTHERS)]))[index % 2]


def suggestions(problem, make):
    """Return method → its rate or None, the reason of a refusal, and the number of rates tried."""
    result = lr_range_test(problem, make)
    first = lr_range_test(problem, make, confirm=0).suggested_max
    rates = {"suggested": result.suggested_max, "first": first, **result.picks}
    return {method: rates.get(method) for method in METHODS}, result.reason, result.confirmed_rates


def judge(problem, make):
    """Return a dict: the best rate of the grid, and the ratio of each method or None."""
    began = time.perf_counter()
    suggested, reason, tried = suggestions(problem, make)
    seconds = time.perf_counter() - began
    extra = [rate for rate in suggested.values() if rate is not None]
    rates = np.unique(np.concatenate([GRID, extra]))
    runs = compare(
        problem,
        {"x": make},
        rates=rates,
        seeds=SEEDS,
        steps=problem.steps,
        eval_every=problem.steps,
    ).runs["x"]
    losses = runs.validation["loss"].astype(float)
    least = DONE * np.abs(losses[0, :, 0]).mean()
    ends = np.where(runs.diverged, np.inf, np.maximum(losses[..., -1], least))
    means = dict(zip(runs.rates, np.exp(np.log(ends).mean(axis=1)), strict=True))
    best = min(GRID, key=means.get)
    ratios = {
        method: None if rate is None else min(means[rate] / means[best], CAP)
        for method, rate in suggested.items()
    }
    return {
        "best": best,
        "rate": suggested["suggested"],
        "ratios": ratios,
        "reason": reason,
        "tried": len(tried),
        "seconds": seconds,
    }


def print_row(name, optimizer, row):
    rate = "none" if row["rate"] is None else f"{row['rate']:.2g}"
    cells = "".join(
        f"{'–' if ratio is None else f'{ratio:.2f}':>10}" for ratio in row["ratios"].values()
    )
    why = f"   {row['reason']}" if row["reason"] else ""
    print(f"{name:18}{optimizer:10}{row['best']:8.2g}{rate:>8}{cells}{why}", flush=True)


def print_summary(title, rows):
    if not rows:
        return
    print(f"\n{title}, {len(rows)} cases: loss / best of the grid")
    print(f"  {'':12}{'mean':>8}{'worst':>8}{'within 1.5':>12}{'refused':>9}")
    for method in METHODS:
        ratios = np.array([r["ratios"][method] for r in rows if r["ratios"][method] is not None])
        if len(ratios):
            print(
                f"  {method:12}{np.exp(np.log(ratios).mean()):8.2f}{ratios.max():8.1f}"
                f"{(ratios <= 1.5).mean():12.0%}{len(rows) - len(ratios):9}"
            )
    tried = [r["tried"] for r in rows]
    print(
        f"  constant rates tried by a test: {np.mean(tried):.1f} in the mean, {max(tried)} at most"
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--quick", action="store_true", help="two problems, one optimizer")
    options = parser.parse_args(arguments)
    names = ["diabetes-linear", "noisy-quadratic"] if options.quick else options.problems
    began = time.perf_counter()
    print(f"jax {jax.__version__} on {jax.default_backend()}\n")
    titles = "".join(f"{method:>10}" for method in METHODS)
    print(f"{'':18}{'':10}{'best':>8}{'rate':>8}{titles}", flush=True)
    rows = {"open problems": [], "sealed problems": []}
    for name in names:
        for optimizer in ("momentum",) if options.quick else optimizers_of(name):
            row = judge(task(name), OPTIMIZERS[optimizer].make)
            rows["sealed problems" if name in SEALED else "open problems"].append(row)
            print_row(name, optimizer, row)
            jax.clear_caches()
    for title, of_group in rows.items():
        print_summary(title, of_group)
    print(f"\n{time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
