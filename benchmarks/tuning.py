"""How good is what `tune` finds, and does it name planted faults?

Sound problems of `strangers`, each as a function of the batch size, are tuned with a budget of
seconds. Beside it stand

    tenfold   random search over the same space with ten times the updates, all whole runs, of which
              the best three are judged
    usual     Optuna with its defaults around the loop that people write, in as many seconds as
              `tune` took: a constant rate, a jitted step, AdamW or SGD with momentum, rate and
              decay from wide ranges; the trial that was best is judged

Each is judged by the mean validation loss over three seeds that no search has used; of a winner
with an earlier end, at that end. A fault counts as named if the step that fails, or warns, says so
in the words below; a sound problem on which a step fails is a false alarm.

    python -m benchmarks.tuning                       all problems, two hours on two CPU cores
    python -m benchmarks.tuning --problems cancer-mlp --budget 20s
    python -m benchmarks.tuning --table FILE          the table of earlier runs
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optlab
from benchmarks.environment import environment
from benchmarks.strangers import (
    PROBLEMS,
    WIDE,
    classified,
    dense,
    drawn_batches,
    supervised,
    task,
)
from optlab.lab import LogUniform, sweep, train, tune
from optlab.lab.tuning._schedules import SCHEDULES

SOUND = (
    "cancer-mlp",
    "diabetes-linear",
    "friedman",
    "spirals",
    "photo-which",
    "mnist1d-recurrent",
    "text-attention",
)
SEEDS = (101, 102, 103)
OPTIMIZERS = {
    "adamw": lambda learning_rate, weight_decay=0.01: optlab.adamw(
        learning_rate, weight_decay=weight_decay
    ),
    "momentum": lambda learning_rate: optlab.sgd(learning_rate, momentum=0.9, nesterov=True),
}
SPACES = {
    "adamw": {"learning_rate": LogUniform(1e-5, 1.0), "weight_decay": LogUniform(1e-4, 1.0)},
    "momentum": {"learning_rate": LogUniform(1e-5, 10.0)},
}


def baseline(name):
    """Return the loss of the best guess without inputs."""
    labels = np.asarray(PROBLEMS[name]().train[1])
    if not np.issubdtype(labels.dtype, np.integer):
        return float(labels.astype(float).var())
    shares = np.unique(labels, return_counts=True)[1] / len(labels)
    return float(-(shares * np.log(shares)).sum())


def problem(name):
    """Return a sound problem as a function of the batch size."""
    usual = PROBLEMS[name]().batch_size

    def make(batch_size=usual):
        data = PROBLEMS[name]().train
        batch = drawn_batches(data, batch_size)
        return replace(task(name), batch=batch, baseline=baseline(name))

    return make


def judged(name, optimizer, stop):
    """Return the mean validation loss over the seeds that no search has used."""
    runs = [
        train(task(name), optimizer, steps=stop, key=jax.random.key(seed), eval_every=stop)
        for seed in SEEDS
    ]
    return float(np.mean([run.history.validation["loss"][-1] for run in runs]))


def of_winner(name, winner):
    """Return the loss of what `tune` found, with its batch size."""
    values = dict(winner.values)
    made = problem(name)(**{k: values.pop(k) for k in ["batch_size"] if k in values})
    rate = values.pop("learning_rate")
    schedule = SCHEDULES[winner.schedule](rate, winner.steps)
    optimizer = OPTIMIZERS[winner.optimizer](schedule, **values)
    losses = []
    for seed in SEEDS:
        run = train(
            made, optimizer, steps=winner.stop, key=jax.random.key(seed), eval_every=winner.stop
        )
        losses.append(run.history.validation["loss"][-1])
    return float(np.mean(losses))


def tenfold(name, updates):
    """Return the loss of the best of a random search with ten times the updates."""
    steps = task(name).steps
    trials = max(2, 10 * updates // steps // len(OPTIMIZERS))
    best = []
    for label, make in OPTIMIZERS.items():
        found = sweep(task(name), make, SPACES[label], trials=trials, seed=7)
        best += [(trial.score, label, trial.values) for trial in found.ranked()[:3]]
    best = sorted(best, key=lambda entry: entry[0])[:3]
    return min(judged(name, OPTIMIZERS[label](**values), steps) for _, label, values in best)


def usual(name, seconds):
    """Return the loss of the best trial of Optuna around the usual loop, and the trials it made."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    made, validation = task(name), task(name).splits["validation"]
    began = time.perf_counter()

    def optimizer_of(values):
        rate = values["learning_rate"]
        if values["optimizer"] == "adamw":
            return optax.adamw(rate, weight_decay=values["weight_decay"])
        return optax.sgd(rate, momentum=0.9)

    def objective(trial):
        values = {"optimizer": trial.suggest_categorical("optimizer", ["adamw", "momentum"])}
        values["learning_rate"] = trial.suggest_float("learning_rate", 1e-5, 1.0, log=True)
        values["weight_decay"] = trial.suggest_float("weight_decay", 1e-4, 1.0, log=True)
        tx = optimizer_of(values)
        params, state = made.init(jax.random.key(0))
        opt_state = tx.init(params)

        @jax.jit
        def step(params, state, opt_state, batch, key):
            (loss, state), grads = jax.value_and_grad(made.loss, has_aux=True)(
                params, state, batch, key
            )
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), state, opt_state, loss

        batches = jax.jit(made.batch)
        for index in range(made.steps):
            batch = batches(jax.random.key(1), index)
            key = jax.random.fold_in(jax.random.key(2), index)
            params, state, opt_state, _ = step(params, state, opt_state, batch, key)
            if time.perf_counter() - began > seconds:
                raise optuna.TrialPruned
        loss = float(made.evaluate(params, state, validation)["loss"])
        return loss if np.isfinite(loss) else 1e9

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, timeout=seconds)
    complete = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    if not complete:
        return float("nan"), 0
    return judged(name, optimizer_of(study.best_params), made.steps), len(complete)


# Faults


def of_broken_labels():
    """Permute the training labels."""
    inputs, labels = PROBLEMS["cancer-mlp"]().train
    data = inputs, np.random.default_rng(0).permutation(labels)
    made = task("cancer-mlp")
    return replace(made, batch=drawn_batches(data, 16), baseline=baseline("cancer-mlp"))


def of_shifted_labels():
    """Shift the labels in the loss, but not in the metrics."""
    made, classes = task("cancer-mlp"), 2

    def loss(params, state, batch, key):
        return made.loss(params, state, (batch[0], (batch[1] + 1) % classes), key)

    return replace(made, loss=loss, baseline=baseline("cancer-mlp"))


def of_mixed_examples():
    """Subtract (n,) from (n, 1) in a squared error."""
    made = task("diabetes-linear")

    def loss(params, state, batch, key):
        del key
        ((weights, bias),) = params
        errors = batch[0] @ weights + bias - batch[1]
        return jnp.mean(errors**2), state

    return replace(made, loss=loss, baseline=baseline("diabetes-linear"))


def of_large_weights():
    """Begin with weights thirty times too large."""
    found = PROBLEMS["text-mlp"]()
    return replace(
        task("text-mlp"),
        init=lambda key: (found.init(key, 30.0), ()),
        baseline=baseline("text-mlp"),
    )


def of_zero_weights():
    """Begin with zeros in all layers."""
    found = PROBLEMS["waves"]()

    def init(key):
        return jax.tree.map(jnp.zeros_like, found.init(key, 1.0)), ()

    return replace(task("waves"), init=init, baseline=baseline("waves"))


def of_few_units():
    """Leave one unit in the hidden layer, to tell letters apart."""
    whole = PROBLEMS["text-mlp"]()
    inputs, outputs = whole.train[0].shape[1:], int(whole.train[1].max()) + 1
    network = dense(int(np.prod(inputs)), outputs, (1,))
    found = supervised(network, (whole.train, whole.validation), classified, steps=whole.steps)
    return replace(
        task("text-mlp"),
        init=lambda key: (found.init(key, 1.0), ()),
        loss=lambda params, state, batch, key: (found.loss(params, WIDE, batch, key), state),
        evaluate=lambda params, state, data: found.metrics(params, WIDE, data),
        baseline=baseline("text-mlp"),
    )


FAULTS = {
    "broken labels": (of_broken_labels, ("labels that do not belong",)),
    "shifted labels in the loss": (of_shifted_labels, ("The loss is guilty",)),
    "mixed examples in the loss": (of_mixed_examples, ("The loss is guilty",)),
    "weights too large": (of_large_weights, ("initial weights", "initialization is guilty")),
    "weights zero": (of_zero_weights, ("initialization is guilty",)),
    "too small": (of_few_units, ("capacity is guilty", "too small a model")),
}


def run_sound(name, budget):
    """Return what was measured on a sound problem."""
    made = problem(name)
    tuning = tune(made, budget=budget, optimizers=OPTIMIZERS)
    alarms = [step.name for step in tuning.steps if step.verdict == "failed"]
    row = {"problem": name, "seconds": tuning.seconds, "updates": tuning.updates, "alarms": alarms}
    if tuning.winner is not None:
        row["tune"] = of_winner(name, tuning.winner)
        row["winner"] = f"{tuning.winner.optimizer}, {tuning.winner.schedule}"
    row["usual"], row["usual trials"] = usual(name, tuning.seconds)
    row["tenfold"] = tenfold(name, tuning.updates)
    return row


def run_faulty(name, budget):
    """Return what was said of a planted fault."""
    make, words = FAULTS[name]
    tuning = tune(make(), budget=budget, optimizers=OPTIMIZERS)
    said = [(step.name, step.advice) for step in tuning.steps if step.verdict != "passed"]
    named = any(word in advice for _, advice in said for word in words)
    step = next((step for step, advice in said if advice), "")
    advice = next((advice for _, advice in said if advice), "")
    return {"fault": name, "named": named, "step": step, "advice": advice}


def table(rows):
    """Print the tables of all rows."""
    sound = [row for row in rows if "problem" in row]
    print(
        f"{'problem':<20}{'tune':>10}{'tenfold':>10}{'usual':>10}{'tune/10×':>10}{'tune/usual':>11}"
    )
    for row in sound:
        found = row.get("tune", float("nan"))
        print(
            f"{row['problem']:<20}{found:>10.4g}{row['tenfold']:>10.4g}{row['usual']:>10.4g}"
            f"{found / row['tenfold']:>10.3f}{found / row['usual']:>11.3f}  {row.get('winner', '')}"
            + (f"  ALARM {row['alarms']}" if row["alarms"] else "")
        )
    for label in ("tenfold", "usual"):
        ratios = [row["tune"] / row[label] for row in sound if "tune" in row]
        ratios = [ratio for ratio in ratios if np.isfinite(ratio)]
        if ratios:
            print(f"tune / {label}: median {np.median(ratios):.3f}, worst {max(ratios):.3f}")
    print()
    for row in rows:
        if "fault" in row:
            print(
                f"{row['fault']:<28}{'named' if row['named'] else 'MISSED':<8}{row['advice'][:70]}"
            )
    faults = [row["named"] for row in rows if "fault" in row]
    print(f"faults named: {sum(faults)} of {len(faults)}")
    print(
        f"false alarms: {sum(bool(row['alarms']) for row in sound)} of {len(sound)} sound problems"
    )


def main(argv=None):
    """Run what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="*", default=[*SOUND, *FAULTS])
    parser.add_argument("--budget", default="60s")
    parser.add_argument("--results", type=Path, help="append a line of JSON for each problem")
    parser.add_argument(
        "--table", type=Path, help="print the table of such a file, and run nothing"
    )
    options = parser.parse_args(argv)
    if options.table:
        table([json.loads(line) for line in options.table.read_text().splitlines()])
        return 0
    rows = []
    print(f"{environment()['CPU']}; budget {options.budget}")
    for name in options.problems:
        row = (run_faulty if name in FAULTS else run_sound)(name, options.budget)
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        if options.results:
            with options.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
    table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
