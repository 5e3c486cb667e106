"""What tests of reports share: a result with everything that one can hold."""

import math

import numpy as np
import pytest

from optlab.lab.tuning._result import (
    Chart,
    Interval,
    Series,
    Step,
    Table,
    TunedTrial,
    Tuning,
    Winner,
)

HOSTILE = '<img src="https://example.org/x.png" onerror="alert(1)"> & "co" | `x` $y$'
"""A name that is markup, if it is not escaped."""

UNBROKEN = "a_module." * 12 + "py"
"""A word that is wider than a phone."""


def _curves(rng):
    steps = np.arange(1, 2001)
    noisy = 2.3 * np.exp(-steps / 400) + 0.05 + 0.04 * rng.normal(size=len(steps)) ** 2
    validation = 2.3 * np.exp(-steps[49::50] / 380) + 0.12
    series = [
        Series("training loss", steps.tolist(), noisy.tolist()),
        Series(
            "validation loss",
            steps[49::50].tolist(),
            validation.tolist(),
            low=(validation * 0.9).tolist(),
            high=(validation * 1.15).tolist(),
        ),
    ]
    return Chart(
        "Loss of the best run",
        "update",
        "loss",
        series,
        y_log=True,
        marks={"end of the warm-up": 100.0, "best": 1850.0},
        levels={"log 10, of a uniform guess": math.log(10)},
        note="The band is the interval over five seeds.",
    )


def _range_tests():
    rates = np.logspace(-6, 1, 60)
    curves = []
    for i, name in enumerate(
        ["adamw", "sgd", "lion", "muon", "soap", "adafactor", "lamb", "sophia"]
    ):
        losses = 2.3 - 1.5 / (1 + np.exp(-3 * (np.log10(rates) + 4.5 - i / 2)))
        losses[rates > 10 ** (-i / 3)] = np.nan
        curves.append(Series(name, rates.tolist(), losses.tolist()))
    return Chart("Loss against the rate", "learning rate", "loss", curves, x_log=True)


def _steps(rng, trials):
    decay = [t.values["weight_decay"] for t in trials]
    isolation = Chart(
        "Best accuracy against weight_decay",
        "weight_decay",
        "validation accuracy",
        [
            Series(
                "trials",
                decay,
                [t.score for t in trials],
                kind="points",
                texts=[f"trial {t.number}" for t in trials],
            )
        ],
        x_log=True,
        marks={"winner": 0.013},
    )
    choices = Chart(
        "Accuracy of the final candidates",
        "candidate",
        "validation accuracy",
        [
            Series(
                "final",
                ["adamw, one cycle", "adamw, cosine", "sgd with momentum, wsd", "lion, constant"],
                [0.951, 0.949, 0.94, math.nan],
                kind="points",
                low=[0.945, 0.941, 0.93, math.nan],
                high=[0.957, 0.956, 0.95, math.nan],
            )
        ],
    )
    tables = [
        Table(
            "What looks guilty",
            {
                "suspect": ["the rate", "the initialization", "the capacity", "the task's loss"],
                "tried": [
                    "rates from 1e-6 to 1 with adamw, and the same with sgd and momentum of 0.9",
                    "he_normal in place of zeros",
                    "twice the width",
                    "squared error of one batch",
                ],
                "loss reached": ["0.0012", "0.0004", "0.002", "0.1"],
            },
            note="Each try took 200 updates on two batches.",
        )
    ]
    return [
        Step(
            "initial loss",
            "Does the untrained model's loss equal that of a uniform guess?",
            "passed",
            "The loss is 2.31 before the first update; log 10 is 2.303.",
            seconds=1.2,
            updates=0,
            runs=3,
        ),
        Step(
            "overfit a few batches",
            "Can the model learn two batches by heart?",
            "failed",
            f"It reaches a loss of 0.41 only. {HOSTILE}",
            f"Look at the initialization first: with he_normal the loss falls. See {UNBROKEN}.",
            tables=tables,
            seconds=14.0,
            updates=1200,
            runs=6,
        ),
        Step(
            "range tests",
            "At which rates does each optimizer learn?",
            "warning",
            "adamw learns from 1e-4 to 1e-2. No rate of sophia lowers the loss.",
            "Leave out sophia, or give it a warm-up.",
            charts=[_range_tests()],
            seconds=40.0,
            updates=6400,
            runs=16,
        ),
        Step(
            "coarse search",
            "Which region is good?",
            "passed",
            "40 trials.",
            seconds=120.0,
            updates=12_000,
            runs=40,
        ),
        Step(
            "refinement",
            "What is the best point of the region?",
            "passed",
            "The best trial has accuracy 0.951.",
            charts=[isolation, Chart(f"Nothing yet of {UNBROKEN}", UNBROKEN, UNBROKEN, [])],
            seconds=160.0,
            updates=20_000,
            runs=20,
        ),
        Step(
            "curves",
            "Do the curves show a fault?",
            "skipped",
            charts=[_curves(rng)],
        ),
        Step(
            "finals",
            "Which schedule is best, over several seeds?",
            "passed",
            "adamw with one cycle.",
            charts=[choices],
            seconds=200.0,
            updates=25_000,
            runs=20,
        ),
    ]


@pytest.fixture
def tuning():
    rng = np.random.default_rng(0)
    trials = [
        TunedTrial(
            ("coarse search", "refinement", "finals")[i // 20],
            i % 20,
            "adamw" if i % 3 else "sgd",
            "constant" if i < 40 else "one cycle",
            {
                "learning_rate": float(10 ** rng.uniform(-5, -1)),
                "weight_decay": float(10 ** rng.uniform(-4, 0)),
                "batch_size": int(rng.choice([32, 64, 128])),
                "a_rather_long_name_of_a_hyperparameter_of_the_task": "relu",
            },
            "diverged" if i % 17 == 3 else "complete",
            300,
            [math.nan] if i % 17 == 3 else (0.9 + 0.05 * rng.random(3)).tolist(),
            0.2,
        )
        for i in range(60)
    ]
    return Tuning(
        task=f"digits-cnn of {UNBROKEN}",
        score="accuracy",
        maximize=True,
        budget="10 minutes",
        seconds=541.7,
        updates=64_600,
        runs=105,
        steps=_steps(rng, trials),
        trials=trials,
        winner=Winner(
            optimizer="adamw",
            schedule="one cycle",
            values={
                "learning_rate": 0.0123456789,
                "weight_decay": 0.013,
                "batch_size": 64,
                "activation": HOSTILE,
                UNBROKEN: UNBROKEN,
            },
            steps=600,
            stop=540,
            seed=0,
            score=Interval.of([0.951, 0.949, 0.955, 0.947, 0.953]),
            test=Interval.of([0.941, 0.939, 0.945, 0.947, 0.943]),
            tied=["adamw, cosine, rate 0.01", "sgd, wsd, rate 0.1"],
            candidates=4,
        ),
        summary=[
            "adamw with one cycle at a peak rate of 0.0123 reaches an accuracy of 0.951 on the "
            "validation data.",
            "Over 5 seeds the mean lies between 0.947 and 0.955; adamw with cosine cannot be told "
            "from it.",
            "It took 9 min 2 s of 10 minutes: 64,600 updates in 105 runs.",
        ],
        failures=[
            "4 runs of the coarse search diverged, all with rates above 0.05.",
            HOSTILE,
            UNBROKEN,
        ],
        finished=True,
        machine="Linux, 2 cores of an Xeon; Python 3.11.7, jax 0.10.2, optax 0.2.8, flax 0.12.7",
    )
