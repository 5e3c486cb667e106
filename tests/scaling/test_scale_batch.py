"""`scale_batch`: what each rule makes of hyperparameters, and what it refuses."""

import numpy as np
import pytest

import optlab
from optlab.scaling import NoiseScale, scale_batch

# Products of a few float64 numbers.
FEW_ROUNDINGS = {"rel": 1e-14}

ADAMW = {
    "learning_rate": 6e-4,
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
    "eps_root": 1e-16,
    "weight_decay": 0.1,
    "ema_decay": 0.999,
    "warmup_steps": 2000,
    "steps": 100_001,
    "epochs": 3,
    "batch_size": 256,
}


def scaled(factor, rule, optimizer=None, base=256, **options):
    hyperparameters = options.pop("hyperparameters", ADAMW)
    return scale_batch(
        hyperparameters, base, round(factor * base), rule, optimizer=optimizer, **options
    )


@pytest.mark.parametrize(
    ("rule", "optimizer", "rate"),
    [
        ("linear", None, 4),
        ("sqrt", "adam", 2),
        ("sde", "SGD", 4),
        ("sde", "rmsprop", 2),
        ("sde", optlab.adamw, 2),
    ],
)
def test_rates_grow_by_the_rule(rule, optimizer, rate):
    old = {"learning_rate": 6e-4, "peak_value": 0.1, "end_value": 0.0}
    averages = {"b1": 0.9, "b2": 0.999, "decay": 0.9}
    new = scaled(4, rule, optimizer, hyperparameters=old | averages)
    assert {key: new[key] for key in old} == pytest.approx(
        {key: rate * value for key, value in old.items()}, **FEW_ROUNDINGS
    )


# From the sheet of facts: 1 − κ(1 − β), worked by hand.
@pytest.mark.parametrize(
    ("factor", "b1", "b2"), [(2, 0.8, 0.998), (4, 0.6, 0.996), (8, 0.2, 0.992), (0.5, 0.95, 0.9995)]
)
def test_the_equation_of_adam_shortens_its_averages_and_its_epsilon(factor, b1, b2):
    new = scaled(factor, "sde", "adamw")
    assert (new["b1"], new["b2"]) == (b1, b2)
    assert new["eps"] == pytest.approx(1e-8 / factor**0.5, **FEW_ROUNDINGS)
    assert new["eps_root"] == pytest.approx(1e-16 / factor, **FEW_ROUNDINGS)


@pytest.mark.parametrize(
    ("rule", "optimizer"), [("linear", None), ("sqrt", "adam"), ("sde", "sgd")]
)
def test_other_rules_keep_averages_and_epsilon(rule, optimizer):
    new = scaled(4, rule, optimizer)
    assert [new[key] for key in ("b1", "b2", "eps", "eps_root")] == [0.9, 0.999, 1e-8, 1e-16]


@pytest.mark.parametrize("rule", ["linear", "sqrt", "sde", "noise"])
def test_decay_and_averages_last_for_as_many_examples(rule):
    options = {"noise_scale": 500.0} if rule == "noise" else {}
    old, new = ADAMW, scaled(6, rule, "adam", **options)

    def examples(h):
        return h["batch_size"] / (h["learning_rate"] * h["weight_decay"])

    assert examples(new) == pytest.approx(examples(old), **FEW_ROUNDINGS)
    # −1/ln a updates, of as many examples each.
    assert 6 / np.log(new["ema_decay"]) == pytest.approx(1 / np.log(0.999), rel=1e-12)
    assert (new["warmup_steps"], new["steps"]) == (333, 16_667)
    assert (new["epochs"], new["batch_size"]) == (3, 1536)


def test_an_l2_penalty_stays_the_same_function():
    assert scaled(4, "sqrt", weight_decay="penalty")["weight_decay"] == 0.1
    assert scaled(4, "sqrt")["weight_decay"] == pytest.approx(0.2, **FEW_ROUNDINGS)


def test_noise_makes_the_rate_linear_below_it_and_constant_above_it():
    def ratio(base, batch, optimizer):
        h = scale_batch({"learning_rate": 1.0}, base, batch, "noise", optimizer=optimizer,
                        noise_scale=1e4)  # fmt: skip
        return h["learning_rate"]

    # 1 + B/b is B/b up to b/B, 1e-4 here, and 1 up to B/b.
    assert ratio(1, 2, "sgd") == pytest.approx(2, rel=2e-4)
    assert ratio(1, 4, "adam") == pytest.approx(2, rel=4e-4)
    assert ratio(10**8, 10**9, "sgd") == pytest.approx(1, rel=1e-4)
    assert ratio(10**4, 10**9, "sgd") == pytest.approx(2, rel=1e-4)


def test_what_is_scaled_there_and_back_is_as_before():
    there = scaled(4, "sde", "adam")
    back = scale_batch(there, 1024, 256, "sde", optimizer="adam")
    steps = ("warmup_steps", "steps")
    assert {k: v for k, v in back.items() if k not in steps} == pytest.approx(
        {k: v for k, v in ADAMW.items() if k not in steps}, rel=1e-12
    )


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (({}, 0, 4), {}, "scale_batch: base_batch must be an integer >= 1, got base_batch=0"),
        (({}, 4, -1), {}, "scale_batch: batch must be an integer >= 1, got batch=-1"),
        (({}, 4, 2.5), {}, "batch must be an integer >= 1, got batch=2.5"),
        (({}, 4, 8, "cube"), {}, "rule must be one of 'linear', 'sqrt', 'sde', 'noise', got"),
        (({}, 4, 8, "sde"), {}, "'sde' must be given one of the optimizers sgd, .*optimizer=None"),
        (({}, 4, 8, "sde"), {"optimizer": "lion"}, "got optimizer='lion'; use the rule 'sqrt'"),
        (({}, 4, 8), {"optimizer": optlab.sgd(1.0)}, "must be a name or a function with one, got"),
        (
            ({}, 4, 8, "noise"),
            {"noise_scale": 1.0},
            "must be given the optimizer, got None",
        ),
        (({}, 4, 8, "noise"), {"optimizer": "sgd"}, "noise_scale must be given with the rule"),
        (
            ({}, 4, 8),
            {"noise_scale": 1.0},
            "given with the rule 'noise' and no other",
        ),
        (
            ({}, 4, 8, "noise"),
            {"optimizer": "sgd", "noise_scale": float("nan")},
            "noise_scale must be finite and > 0, got noise_scale=nan",
        ),
        (
            ({}, 4, 8, "noise"),
            {"optimizer": "sgd", "noise_scale": NoiseScale(5.0, 1.0, 5.0, 3)},
            "noise_scale must be a number, got a .*; pass its attribute noise_scale",
        ),
        (([1], 4, 8), {}, "hyperparameters must be a mapping from names to numbers, got list"),
        (
            ({"rate": 0.1}, 4, 8),
            {},
            "among learning_rate, .*got 'rate'; leave it out",
        ),
        (({"learning_rate": -1}, 4, 8), {}, "learning_rate must be finite and >= 0, got"),
        (({"learning_rate": abs}, 4, 8), {}, "number that is known now, got a schedule; scale the"),
        (({"b1": 1.0}, 4, 8), {}, r"b1 must be in \[0, 1\), got b1=1.0"),
        (({"ema_decay": 1.5}, 4, 8), {}, r"ema_decay must be in \[0, 1\], got ema_decay=1.5"),
        (({"steps": 2.5}, 4, 8), {}, "steps must be an integer >= 0, got steps=2.5"),
        (({"steps": 3}, 1, 8), {}, "steps must be at least one update of the large batch, 8 ex"),
        (({"batch_size": 2}, 4, 8), {}, "batch_size must be base_batch, 4, got batch_size=2"),
        (({}, 4, 8), {"weight_decay": "l2"}, "weight_decay must be one of 'decoupled', 'penalty'"),
        (
            ({"b1": 0.9, "b2": 0.999}, 32, 320, "sde"),
            {"optimizer": "adam"},
            r"with 'sde' batch/base_batch must be below 1/\(1 − b1\) = 10, where the "
            "average of b1 would last for less than one update, got 10; take a smaller batch",
        ),
        (
            ({"learning_rate": 0.1, "b2": 0.999}, 8, 128, "sde"),
            {"optimizer": "adam"},
            "'sde' must be given b1 and b2, since it changes them, got none for b1; write the",
        ),
        (({"gradient_accumulation_steps": 8}, 8, 32), {}, "_steps, but for those of an accumul"),
        (
            ({"decay": 0.9, "momentum": 0.9}, 4, 8, "sde"),
            {"optimizer": "rmsprop"},
            "knows none of a momentum around RMSProp, got momentum=0.9; leave momentum out",
        ),
    ],
)
def test_bad_input_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        scale_batch(*arguments, **options)
