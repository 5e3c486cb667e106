"""How much faster is a sweep in lanes than the usual loop of Optuna and Optax?

All contenders train the network of `tasks.digits_mlp` with AdamW, at the same points of rate and
decay (a Halton sequence), from the same initialization, on the same batches, and evaluate it
equally often:

    usual       Optuna asks for one trial at a time. The trial makes an NNX model, an
                `nnx.Optimizer` of `optax.adamw`, and a step and an evaluation under `nnx.jit`, as
                in Flax's guides.
    pure        the same with pure functions under `jax.jit`. The initialization and the evaluation
                are compiled once for all trials, the step for each trial.
    careful     the same, and the step is also compiled once: the values are injected into the
                optimizer's state (`optax.inject_hyperparams`).
    optlab      `lab.sweep` with `optlab.adamw`.
    optlab+     `lab.sweep` with `optax.adamw`.

Each contender runs in its own process, so that each compiles for itself. The script prints the wall
time of the search, with compilation but without imports and data, and how the scores of the trials
agree with those of the usual loop. It takes some minutes on two CPU cores:

    python benchmarks/sweep.py

It needs optlab[lab,bayes].
"""

import argparse
import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
import optuna
from flax import nnx

import optlab
from optlab import lab
from optlab.lab.sweeps._search import points
from optlab.lab.tasks._models import MLP

SPACE = {"learning_rate": lab.LogUniform(1e-4, 1e-1), "weight_decay": lab.LogUniform(1e-6, 1e-1)}
EVALUATIONS = 10
SEED = 0


def sweep_with(optimizer):
    """Return a contender: (task, trials, steps) → the score of each trial."""

    def search(task, trials, steps):
        result = lab.sweep(
            task,
            optimizer,
            SPACE,
            trials=trials,
            search="halton",
            seed=SEED,
            steps=steps,
            eval_every=steps // EVALUATIONS,
        )
        return [float(trial.validation["accuracy"][0, -1]) for trial in result.trials]

    return search


def loop_with(make_trial):
    """Return a contender that runs the trials one after the other, as Optuna asks for them.

    Args:
        make_trial: (task, keys) → (rate, decay) → (step, evaluate). `step` takes a batch;
            `evaluate` returns the validation accuracy.
    """

    def search(task, trials, steps):
        keys = jax.random.split(jax.random.key(SEED), 3)
        batch = jax.jit(task.batch)
        batches = [jax.device_get(batch(keys[1], step)) for step in range(steps)]
        trial_of = make_trial(task, keys)

        def objective(trial):
            rate = trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
            decay = trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True)
            step, evaluate = trial_of(rate, decay)
            for index, examples in enumerate(batches):
                step(examples)
                if (index + 1) % (steps // EVALUATIONS) == 0:
                    accuracy = float(evaluate())
            return accuracy

        study = optuna.create_study(direction="maximize")
        for values in points(SPACE, "halton", SEED, range(trials)):
            study.enqueue_trial(values)
        study.optimize(objective, n_trials=trials)
        return [trial.value for trial in study.trials]

    return search


def usual(task, keys):
    inputs, labels = task.splits["validation"]

    def trial_of(rate, decay):
        model = MLP(64, 128, 10, rngs=nnx.Rngs(keys[0]))
        tx = optax.adamw(rate, weight_decay=decay)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

        def loss_of(model, inputs, labels):
            losses = optax.softmax_cross_entropy_with_integer_labels(model(inputs), labels)
            return losses.mean()

        @nnx.jit
        def train_step(model, optimizer, inputs, labels):
            loss, grads = nnx.value_and_grad(loss_of)(model, inputs, labels)
            optimizer.update(model, grads)
            return loss

        @nnx.jit
        def accuracy(model, inputs, labels):
            return (model(inputs).argmax(-1) == labels).mean()

        def step(batch):
            train_step(model, optimizer, *batch)

        return step, lambda: accuracy(model, inputs, labels)

    return trial_of


def pure(step_for):
    """Return a maker of trials with pure functions; `step_for` decides when a step is compiled."""

    def make_trial(task, keys):
        start, model_state = jax.jit(task.init)(keys[0])
        evaluate = jax.jit(task.evaluate)
        step_of = step_for(task, model_state, keys[2])

        def trial_of(rate, decay):
            opt_state, compiled = step_of(start, rate, decay)
            run = [start, opt_state]

            def step(batch):
                run[:] = compiled(*run, batch)

            def accuracy():
                return evaluate(run[0], model_state, task.splits["validation"])["accuracy"]

            return step, accuracy

        return trial_of

    return make_trial


def compiled_for_each(task, model_state, key):
    def step_of(params, rate, decay):
        tx = optax.adamw(rate, weight_decay=decay)

        @jax.jit
        def step(params, opt_state, batch):
            grads = jax.grad(lambda p: task.loss(p, model_state, batch, key)[0])(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        return tx.init(params), step

    return step_of


def compiled_once(task, model_state, key):
    tx = optax.inject_hyperparams(optax.adamw)(1e-3, weight_decay=1e-3)

    @jax.jit
    def step(params, opt_state, batch):
        grads = jax.grad(lambda p: task.loss(p, model_state, batch, key)[0])(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def step_of(params, rate, decay):
        opt_state = tx.init(params)
        injected = {"learning_rate": rate, "weight_decay": decay}
        for name, value in injected.items():
            opt_state.hyperparams[name] = jax.numpy.float32(value)
        return opt_state, step

    return step_of


CONTENDERS = {
    "usual": loop_with(usual),
    "pure": loop_with(pure(compiled_for_each)),
    "careful": loop_with(pure(compiled_once)),
    "optlab": sweep_with(optlab.adamw),
    "optlab+": sweep_with(optax.adamw),
}


def run_here(name, trials, steps):
    """Print the seconds and the scores of one contender, as JSON."""
    optuna.logging.set_verbosity(logging.WARNING)
    task = lab.tasks.digits_mlp()
    jax.numpy.zeros(1).block_until_ready()
    began = time.perf_counter()
    scores = CONTENDERS[name](task, trials, steps)
    print(json.dumps({"seconds": time.perf_counter() - began, "scores": scores}))


def run_apart(name, trials, steps):
    """Return what one contender prints in a process of its own."""
    command = [sys.executable, Path(__file__), "--only", name]
    options = ["--trials", str(trials), "--steps", str(steps)]
    done = subprocess.run([*command, *options], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3, help="runs of the quick ones")
    parser.add_argument("--only", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only:
        return run_here(options.only, options.trials, options.steps)
    print(f"jax {jax.__version__} on {jax.default_backend()}; {options.trials} trials of")
    print(f"{options.steps} updates of {lab.tasks.digits_mlp().name}, seconds end to end")
    print()
    runs = {name: [] for name in CONTENDERS}
    quick = ["careful", "optlab", "optlab+"]
    for name in (*quick, "usual", "pure", *quick * (options.repeats - 1)):
        runs[name].append(run_apart(name, options.trials, options.steps))
    base = runs["usual"][0]
    print(f"{'':10}{'seconds':>9}{'least':>8}{'most':>8}{'usual /':>9}   accuracy, against usual")
    for name, runs_of_name in runs.items():
        seconds = [run["seconds"] for run in runs_of_name]
        middle = float(np.median(seconds))
        apart = np.abs(np.subtract(runs_of_name[0]["scores"], base["scores"]))
        print(
            f"{name:10}{middle:9.1f}{min(seconds):8.1f}{max(seconds):8.1f}"
            f"{base['seconds'] / middle:9.1f}   median apart {np.median(apart):.4f}, "
            f"at most {apart.max():.4f}"
        )
    best = {name: max(runs_of_name[0]["scores"]) for name, runs_of_name in runs.items()}
    print("\nbest accuracy: " + ", ".join(f"{name} {score:.4f}" for name, score in best.items()))
    return None


if __name__ == "__main__":
    main()
