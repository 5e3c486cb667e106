"""How often does `diagnose` name what is wrong with a run, and is its advice worth following?

Each problem of `strangers` is trained with several optimizers at a grid of rates, constant and with
a cosine decay. Then runs go wrong in one way each; see `CAUSES`. The degree of a cause is chosen by
its harm, the share of the tuned run's fall that a run misses. `diagnose` has no part in the choice.
If no degree does harm, the cause is left out.

    named       the share of runs with a cause in which one of the patterns that mean it is found
    false       a finding on a run at the best rate of the grid, constant or decayed, whose advice
                does not lower the final validation loss
    followed    what advice does to the final validation loss, whichever run it was given on:
                improved or harmed if the loss changes by more than TOLERANCE

Advice is followed literally: the rate in the finding's advice, twice the updates, a decay over the
whole run, three times the examples or units, usual initial weights, the best evaluation where it
says to stop early.

    python -m benchmarks.diagnosis            all problems, an hour on two CPU cores
    python -m benchmarks.diagnosis --quick    two problems, one optimizer
    python -m benchmarks.diagnosis --runs F   keep the runs in a folder, to judge them again at once
"""

import argparse
import json
import pickle
import re
import sys
import time
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from benchmarks.strangers import PROBLEMS, SEALED, WIDE
from optlab.lab import History, diagnose, monitor, monitored
from optlab.registry import OPTIMIZERS

EVALUATIONS = 25
LANES = 8  # lanes that run together, so that one program serves every call
SEEDS = 2
EVALUATED = 400  # training examples
TOLERANCE = 0.01  # of the loss

ROTATING = ("rmsprop", "adagrad", "lion", "adamw", "lamb", "adafactor", "soap", "muon", "lars")
"""Every problem is trained with momentum, adam, and one of these."""

POWERS = np.arange(-4.5, 1.1, 0.5)
"""The logarithms of the grid's rates."""


class Runner:
    """Trains lanes of a problem with one optimizer, each from all seeds, in one compiled program.

    The program trains for twice the usual number of updates, as compiling it a second time would
    take longer. A lane is a dict: rates (2·steps,), scale of the initial weights, units per hidden
    layer, examples, and the update at which three updates are thrown too far, by which factor.
    """

    def __init__(self, problem, optimizer):
        self.every = problem.steps // EVALUATIONS
        self.num_updates = self.every * EVALUATIONS
        one = partial(_run, problem, OPTIMIZERS[optimizer].make, self.every)
        self._runs = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))

    def lane(self, rates, scale=1.0, units=WIDE, examples=WIDE, thrown=(-9, 1.0)):
        """Return a lane; `rates` has a number for each update, or is one number."""
        rates = np.broadcast_to(rates, (np.size(rates) if np.ndim(rates) else self.num_updates,))
        filled = np.concatenate([rates, np.full(2 * self.num_updates - len(rates), rates[-1])])
        return {
            "rates": filled,
            "scale": scale,
            "units": units,
            "examples": examples,
            "thrown": np.array(thrown),
            "length": len(rates),
        }

    def __call__(self, lanes, seeds):
        """Return histories as a list over lanes of lists over seeds."""
        histories = []
        for start in range(0, len(lanes), LANES):
            chunk = lanes[start : start + LANES]
            filled = chunk + [chunk[0]] * (LANES - len(chunk))
            stacked = jax.tree.map(lambda *x: np.stack(x).astype(np.float32), *filled)
            out = jax.device_get(self._runs(stacked, jnp.asarray(seeds)))
            histories += [
                [self._history(lane, out, i, j) for j in range(len(seeds))]
                for i, lane in enumerate(chunk)
            ]
        return histories

    def _history(self, lane, out, i, j):
        updates = lane["length"]
        evaluations = updates // self.every + 1
        loss, monitored, metrics = jax.tree.map(lambda x: x[i, j], out)
        metrics = jax.tree.map(lambda x: x[:evaluations], metrics)
        return History(
            loss=loss.ravel()[:updates],
            steps=np.arange(evaluations) * self.every,
            train=metrics.get("train", {}),
            validation=metrics["validation"],
            learning_rate=lane["rates"][:updates],
            monitored={name: x.ravel()[:updates] for name, x in monitored.items()},
        )


def _run(problem, make, every, lane, seed):
    """Return the losses, the monitored values, and the metrics before each interval."""
    count = 2 * EVALUATIONS * every
    optimizer = monitor(make(lambda step: lane["rates"][jnp.clip(step, 0, count - 1)]))
    init_key, batch_key, noise_key = jax.random.split(jax.random.key(seed), 3)
    params = problem.init(init_key, lane["scale"])
    units = lane["units"].astype(int)
    data = problem.train and tuple(jnp.asarray(x) for x in problem.train)
    rows = jnp.zeros((count + every, 1), int)
    if data:
        examples = jnp.minimum(lane["examples"].astype(int), len(data[0]))
        shape = (count + every, problem.batch_size)
        rows = jax.random.randint(batch_key, (shape[0] * shape[1],), 0, examples).reshape(shape)

    def update(carry, step):
        params, state = carry
        batch = tuple(x[rows[step]] for x in data) if data else ()
        noise = jax.random.fold_in(noise_key, step)
        is_thrown = jnp.abs(step - lane["thrown"][0] - 1) < 1.5
        loss, grads = jax.value_and_grad(problem.loss)(params, units, batch, noise)
        updates, state = optimizer.update(grads, state, params)
        factor = jnp.where(is_thrown, lane["thrown"][1], 1.0)
        updates = jax.tree.map(lambda u: factor * u, updates)
        return (optax.apply_updates(params, updates), state), (loss, monitored(state))

    def evaluate(params):
        if not data:
            return {"validation": problem.metrics(params, units, None)}
        some = jnp.arange(min(len(data[0]), EVALUATED)) % examples
        splits = {"train": tuple(x[some] for x in data), "validation": problem.validation}
        return {split: problem.metrics(params, units, x) for split, x in splits.items()}

    def interval(carry, steps):
        metrics = evaluate(carry[0])
        carry, (losses, monitored_values) = lax.scan(update, carry, steps)
        return carry, (losses, monitored_values, metrics)

    # One interval more, for the metrics before it.
    steps = jnp.arange(count + every).reshape(2 * EVALUATIONS + 1, every)
    return lax.scan(interval, (params, optimizer.init(params)), steps)[1]


# Runs that go wrong

CAUSES = {
    "diverging": ("divergence", "rate too high"),
    "rate too high": ("rate too high", "divergence", "plateau at a constant rate"),
    "no decay": ("plateau at a constant rate", "rate too high"),
    "rate too low": ("still improving", "updates too small", "no progress"),
    "low, decayed": ("still improving", "updates too small", "no progress"),
    "stalled": ("updates too small", "no progress", "still improving"),
    "early decay": ("decayed too early",),
    "few data": ("overfitting",),
    "small model": ("underfitting", "no progress"),
    "small start": ("flat, then a sharp drop",),
    "large start": ("starts far too high", "divergence"),
    "spike": ("spike",),
}
"""Cause → the patterns that mean it."""


def cosine(steps, peak, share=1.0):
    """Return a rate that falls from its peak to 1e-3 of it at `share` of the run."""
    t = np.arange(steps) / steps
    return peak * np.maximum(0.5 * (1 + np.cos(np.pi * np.clip(t / share, 0, 1))), 1e-3)


def held(steps, rate):
    """Return a rate that is constant over 60% of a run, and then falls to 0."""
    t = np.arange(steps) / steps
    return rate * np.minimum(1, (1 - t) / 0.4)


def final(histories):
    """Return the final validation loss in the mean over seeds; infinite if a run diverged."""
    ends = [h.validation["loss"][-1] for h in histories]
    whole = all(np.isfinite(h.loss).all() for h in histories)
    return float(np.mean(ends)) if whole and np.isfinite(ends).all() else np.inf


class Case:
    """All runs of one problem with one optimizer, by the name of what was done: a key.

    Keys are ("constant", power), ("cosine", power) with rates of 10^power, others as `provoke`
    names them; ("long", …) are runs of twice as many updates.
    """

    def __init__(self, name, optimizer, seeds, folder=None):
        file = folder and folder / f"{name}-{optimizer}.pickle"
        if file and file.exists():
            self.runs = pickle.loads(file.read_bytes())
        else:
            self._train_all(name, optimizer, seeds)
            if file:
                file.write_bytes(pickle.dumps(self.runs))
        self._choose()

    def _choose(self):
        self.constant = min(POWERS, key=lambda power: final(self.runs["constant", power]))
        self.decayed = min(POWERS, key=lambda power: final(self.runs["cosine", power]))

    def _train_all(self, name, optimizer, seeds):
        self.problem, self.seeds = PROBLEMS[name](), seeds
        self._runner = Runner(self.problem, optimizer)
        self.runs = {}
        lane, steps = self._runner.lane, self._runner.num_updates
        self._train(
            {("constant", power): lane(10.0**power) for power in POWERS}
            | {("cosine", power): lane(cosine(steps, 10.0**power)) for power in POWERS},
        )
        self._choose()
        powers = [p for p in POWERS if self.constant - 2 <= p <= self.constant + 0.5]
        later = [p for p in POWERS if self.decayed - 1.5 <= p <= self.decayed]
        self._train(
            self._spoiled(lane, steps)
            | {("long", "constant", p): lane(np.full(2 * steps, 10.0**p)) for p in powers}
            | {("long", "cosine", p): lane(cosine(2 * steps, 10.0**p)) for p in later},
        )
        del self._runner

    def _train(self, lanes):
        runs = self._runner(list(lanes.values()), self.seeds)
        self.runs.update(zip(lanes, runs, strict=True))

    def _spoiled(self, lane, steps):
        rate = 10.0**self.decayed
        good = cosine(steps, rate)
        lanes = {
            ("early decay", share): lane(cosine(steps, rate, share)) for share in (0.03, 0.1, 0.2)
        }
        for factor in (10.0, 30.0, 100.0):
            lanes["spike", factor] = lane(good, thrown=(steps // 2, factor))
        for power in np.arange(self.constant - 1, self.constant + 1.1, 0.5):
            lanes["held", power] = lane(held(steps, 10.0**power))
        if self.problem.train is None:
            return lanes
        for scale in (0.03, 0.1, 0.3):
            lanes["small start", scale] = lane(good, scale=scale)
        lanes["large start", 10] = lane(good, scale=10.0)
        for share in (0.03, 0.1):
            lanes["few data", share] = lane(good, examples=int(share * len(self.problem.train[0])))
        for units in (1, 2, 3):
            lanes["small model", units] = lane(good, units=units)
        return lanes

    # What went wrong, and what would have been better

    def planted(self):
        """Yield (cause, key) for each cause of which a degree does about the intended harm."""
        tuned, best = ("cosine", self.decayed), ("constant", self.constant)
        start = np.mean([h.validation["loss"][0] for h in self.runs[tuned]])

        def harm(key, against):
            end = final(self.runs[against])
            return (final(self.runs[key]) - end) / (start - end)

        def nearest(kind, against, low, high, target, among=lambda degree: True):
            harms = {k: harm(k, against) for k in self.runs if k[0] == kind and among(k[1])}
            near = {k: abs(np.log(h / target)) for k, h in harms.items() if low <= h <= high}
            return min(near, key=near.get) if near else None

        def is_thrown(key):
            width = len(self.runs[key][0].loss) // 20
            middle = len(self.runs[key][0].loss) // 2
            for h in self.runs[key]:
                before, after = h.loss[middle - width : middle], h.loss[middle : middle + width]
                if after.max() - before.mean() < 0.5 * (h.loss[:3].mean() - h.loss.min()):
                    return False
            return final(self.runs[key]) < final(self.runs[tuned]) + 0.1 * start

        high = nearest("constant", best, 0.2, 3.0, 0.6, lambda power: power > self.constant)
        low = nearest("constant", best, 0.1, 0.7, 0.3, lambda power: power < self.constant)
        yield "rate too high", high
        yield "rate too low", low
        yield "low, decayed", nearest("cosine", tuned, 0.1, 0.9, 0.3, lambda p: p < self.decayed)
        yield "stalled", ("constant", POWERS[0]) if self.constant > POWERS[0] + 2 else None
        yield "early decay", nearest("early decay", tuned, 0.05, 0.6, 0.15)
        diverged = [k for k in self.runs if k[0] == "constant" and not harm(k, best) < 4]
        yield "diverging", min(diverged, key=lambda key: key[1]) if diverged else None
        noisy = ("constant", self.constant + 0.5)
        decays = final(self.runs.get(("held", noisy[1]), ())) if noisy in self.runs else np.inf
        yield (
            "no decay",
            noisy
            if harm(noisy, best) > 0.02 > harm(("held", noisy[1]), best) and (np.isfinite(decays))
            else None,
        )
        yield "spike", next((k for k in self.runs if k[0] == "spike" and is_thrown(k)), None)
        yield "few data", nearest("few data", tuned, 0.05, np.inf, 0.5)
        yield "small model", nearest("small model", tuned, 0.15, 0.9, 0.4)
        # Without an accuracy, nobody knows the loss of guessing.
        knows = "accuracy" in self.runs[tuned][0].validation and ("large start", 10) in self.runs
        yield "large start", ("large start", 10) if knows else None
        late = (k for k in self.runs if k[0] == "small start" and self._is_late(k, tuned))
        yield "small start", next(late, None)

    def _is_late(self, key, tuned):
        ends = final(self.runs[key]), final(self.runs[tuned])
        halves = [np.mean([half_time(h) for h in self.runs[k]]) for k in (key, tuned)]
        return halves[0] > halves[1] + 0.1 and ends[0] < 2 * ends[1]

    def follow(self, key, finding, seed):
        """Return the final validation losses of a run, and of that with the advised change.

        None if the change was not tried.
        """
        kind, degree = key[-2:]
        tuned, up = ("cosine", self.decayed), lambda by: (*key[:-1], degree + by)
        is_rate = kind in ("constant", "cosine")
        change = {
            "divergence": up(-1.0) if is_rate else None,
            "losses that are not finite": None,
            "rate too high": up(-0.5) if is_rate else None,
            "updates too small": up(1.0) if is_rate else None,
            "no progress": up(1.0) if is_rate else None,
            "still improving": ("long", *key),
            "plateau at a constant rate": ("held", degree) if kind == "constant" else None,
            "decayed too early": tuned,
            "spike": tuned if kind == "spike" else None,
            "flat, then a sharp drop": tuned if kind == "small start" else None,
            "starts far too high": tuned if kind == "large start" else None,
            "overfitting": tuned if kind == "few data" else None,
            "underfitting": tuned if kind == "small model" else None,
        }[finding.pattern]
        if finding.pattern == "rate too high" and is_rate:
            change = up(-1.0 if "to a tenth" in finding.advice else -0.5)
        if finding.pattern in ("updates too small", "no progress") and is_rate:
            factor = re.search(r"about (\d+) times higher", finding.advice)
            change = up(min(np.log10(float(factor[1])), 2.5) if factor else 1.0)
            if "units are alive (" in finding.advice:
                return None
        if finding.pattern == "still improving" and "three times" in finding.advice and is_rate:
            change = up(0.5)
        history = self.runs[key][seed]
        before = final([history])
        if finding.pattern == "overfitting" and "stop early" in finding.advice:
            return before, float(np.nanmin(history.validation["loss"]))
        if change not in self.runs:
            return None
        return before, final([self.runs[change][seed]])


def half_time(history):
    """Return the share of the run after which half of the loss's fall is done."""
    smooth = np.convolve(history.loss, np.ones(9) / 9, "valid")
    below = smooth < (smooth[0] + smooth[-9:].mean()) / 2
    return below.argmax() / len(history.loss) if below.any() else 1.0


def judge(case, where):
    """Yield a dict for each run: its key and cause, what is found, and what the advice does."""
    causes = {key: cause for cause, key in case.planted() if key is not None}
    best = [("constant", case.constant), ("cosine", case.decayed)]
    for key, histories in case.runs.items():
        if key[0] == "long" and key not in causes:
            continue
        for seed, history in enumerate(histories):
            findings = diagnose(history).findings
            followed = {f.pattern: case.follow(key, f, seed) for f in findings}
            bare = History(history.loss, history.steps, {}, history.validation)
            yield where | {
                "key": [str(part) for part in key],
                "seed": seed,
                "cause": causes.get(key),
                "best": key in best,
                "named": [f.pattern for f in findings],
                "with little recorded": [f.pattern for f in diagnose(bare).findings],
                "followed": followed,
            }


def outcome(pair):
    """Say what a change of the final validation loss is."""
    if pair is None:
        return "not tried"
    before, after = (x if np.isfinite(x) else np.inf for x in pair)
    if before == after:
        return "no change"
    if not np.isfinite(before) or after < before - TOLERANCE * abs(before):
        return "improved"
    return "harmed" if after > before + TOLERANCE * abs(before) else "no change"


def print_tables(title, results):
    print(f"\n{title}: runs with a cause, and the share of them in which it was named")
    for cause, patterns in CAUSES.items():
        runs = [r for r in results if r["cause"] == cause]
        if runs:
            named, bare = (
                np.mean([bool(set(r[which]) & set(patterns)) for r in runs])
                for which in ("named", "with little recorded")
            )
            firsts = Counter((*r["named"], "nothing")[0] for r in runs).most_common(3)
            firsts = ", ".join(f"{count} {pattern}" for pattern, count in firsts)
            print(f"  {cause:14}{len(runs):4}{named:6.0%} ({bare:.0%})   first: {firsts}")
    caused = [r for r in results if r["cause"]]
    named = np.mean([bool(set(r["named"]) & set(CAUSES[r["cause"]])) for r in caused])
    print(f"  {'all':14}{len(caused):4}{named:6.0%}")

    best = [r for r in results if r["best"]]
    found = [(r, p) for r in best for p in r["named"]]
    wrong = [(r, p) for r, p in found if outcome(r["followed"][p]) in ("harmed", "no change")]
    unsure = [(r, p) for r, p in found if outcome(r["followed"][p]) == "not tried"]
    print(f"\n{title}: {len(best)} runs at the best constant and the best decayed rate")
    for name, some in (("any finding", found), ("false", wrong), ("not checked", unsure)):
        runs = {(r["problem"], r["optimizer"], *r["key"], r["seed"]) for r, _ in some}
        patterns = Counter(p for _, p in some).most_common()
        patterns = ", ".join(f"{count} {pattern}" for pattern, count in patterns)
        print(f"  {name:14}{len(runs):4}{len(runs) / len(best):6.0%}   {patterns}")

    print(f"\n{title}: advice that was followed, and the final validation loss")
    counts = defaultdict(Counter)
    for r in results:
        for pattern, pair in r["followed"].items():
            counts[pattern][outcome(pair)] += 1
    total = sum(counts.values(), Counter())
    names = ("improved", "no change", "harmed")
    print(
        f"  {'':28}{'tried':>6}" + "".join(f"{name:>11}" for name in names) + f"{'not tried':>11}"
    )
    for pattern, count in [*counts.items(), ("all", total)]:
        tried = sum(count[name] for name in names)
        shares = "".join(f"{count[name] / max(tried, 1):11.0%}" for name in names)
        print(f"  {pattern:28}{tried:6}{shares}{count['not tried']:11}")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--quick", action="store_true", help="two problems, one optimizer")
    parser.add_argument("--runs", type=Path, help="a folder for the runs, read where it has them")
    parser.add_argument("--json", action="store_true", help="each run, instead of the tables")
    options = parser.parse_args(arguments)
    names = ["diabetes-linear", "noisy-quadratic"] if options.quick else options.problems
    if options.runs:
        options.runs.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    results = {"open": [], "sealed": []}
    for name in names:
        optimizers = ("momentum",) if options.quick else optimizers_of(name)
        for optimizer in optimizers:
            case = Case(name, optimizer, range(SEEDS), options.runs)
            where = {"problem": name, "optimizer": optimizer}
            results["sealed" if name in SEALED else "open"] += judge(case, where)
            print(f"{name} {optimizer}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
            jax.clear_caches()
    if options.json:
        print(json.dumps(results))
        return
    print(f"jax {jax.__version__} on {jax.default_backend()}")
    for title, judgements in results.items():
        if judgements:
            print_tables(f"{title} problems", judgements)
    print(f"\n{time.perf_counter() - began:.0f} s")


def optimizers_of(name):
    """Return the optimizers with which a problem is trained; over all problems they are all."""
    index = list(PROBLEMS).index(name)
    rotating = ROTATING[index % len(ROTATING)]
    # Muon needs a matrix, which a function of a point has not.
    rotating = "adamw" if rotating == "muon" and PROBLEMS[name]().train is None else rotating
    return ("adam", "momentum", "sgd")[index % 3], rotating


if __name__ == "__main__":
    main()
