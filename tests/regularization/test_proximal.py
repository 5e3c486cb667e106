"""`l1` and `group_lasso`: exact zeros, the right minimum, and the metric of each optimizer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from helpers import stepping
from optlab import reference as ref
from optlab import rules
from optlab.regularization import group_lasso, l1
from optlab.regularization._proximal import _group_shrinkage
from optlab.testing import check_transformation

OPTIMIZERS = {
    "sgd": lambda rate: optlab.sgd(rate),
    "momentum": lambda rate: optlab.sgd(rate, momentum=0.9),
    "nesterov": lambda rate: optlab.sgd(rate, momentum=0.9, nesterov=True, dampening=0.5),
    "adam": lambda rate: optlab.adam(rate),
    "amsgrad": lambda rate: optlab.adam(rate, amsgrad=True),
    "nadam": lambda rate: optlab.adam(rate, nesterov=True),
    "adagrad": lambda rate: optlab.adagrad(rate),
    "rmsprop": lambda rate: optlab.rmsprop(rate),
    "centered": lambda rate: optlab.rmsprop(
        rate, centered=True, bias_correction=True, eps_in_sqrt=True
    ),
    "rmsprop, momentum": lambda rate: optlab.rmsprop(rate, momentum=0.5),
}


# The minimum

# Least squares, ½·wᵀHw − bᵀw, whose minimum with the penalty 0.01·Σ|w| is (1.999, 0): there the
# gradient Hw − b is (−0.01, −0.005), within the penalty's subgradient.
H = np.array([[10.0, 0.3], [0.3, 0.1]])
STRENGTH, MINIMUM = 0.01, np.array([1.999, 0.0])
B = H @ MINIMUM + np.array([0.01, 0.005])

RATES = {"sgd": 0.1, "momentum": 0.02, "nesterov": 0.03, "adagrad": 0.5}
STEPS = 4000


@functools.cache
def descended(name, strength=STRENGTH, threshold=None):
    """Return the weights that an optimizer comes to; its rate falls to 0 in the second half."""
    rate = optlab.schedules.linear(RATES.get(name, 0.02), 0.0, STEPS // 2)
    tx = OPTIMIZERS[name](lambda count: rate(jnp.maximum(count - STEPS // 2, 0)))
    if threshold is None:
        tx = l1(tx, strength)

    def step(i, run):
        w, state = run
        g = jnp.asarray(H) @ w - jnp.asarray(B)
        updates, state = tx.update(g, state, w)
        w = w + updates
        if threshold is not None:
            size = threshold * rate(jnp.maximum(i - STEPS // 2, 0))
            w = jnp.sign(w) * jnp.maximum(abs(w) - size, 0)
        return w, state

    start = jnp.ones(2)
    return np.asarray(
        jax.jit(lambda: jax.lax.fori_loop(0, STEPS, step, (start, tx.init(start)))[0])()
    )


FAST = ["sgd", "momentum", "adam", "adagrad", "rmsprop"]


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in OPTIMIZERS]
)
def test_the_minimum_is_that_of_the_loss_with_the_penalty(name):
    w = descended(name)
    # Rounding of 20 − 10·w₁ stops the descent at 2e-7; what is left of the rate moves less.
    np.testing.assert_allclose(w, MINIMUM, atol=2e-5)
    assert w[1] == 0


def test_a_threshold_without_the_metric_misses_the_minimum():
    w = descended("adam", threshold=STRENGTH)
    assert abs(w - MINIMUM).max() > 0.01


# Each step


def metric_of(name, state):
    """Return D from the state of a reference, as its formula has it, without the rate."""
    t, s = state["t"], state["state"]
    match name:
        case "sgd":
            return 1.0
        case "momentum":
            return 1 / (1 - 0.9)
        case "adam":
            return 1 / (np.sqrt(s["nu"] / (1 - 0.999**t)) + 1e-8)
        case "adagrad":
            return 1 / (np.sqrt(s["sum_of_squares"]) + 1e-8)
        case "rmsprop":
            return 1 / (np.sqrt(s["mean_square"]) + 1e-8)


REFERENCES = {
    "sgd": (lambda g, s, t: (g, s), optlab.sgd(0.1)),
    "momentum": (
        lambda g, s, t: ref.scale_by_momentum(g, s, t, momentum=0.9),
        optlab.sgd(0.1, momentum=0.9),
    ),
    "adam": (lambda g, s, t: ref.scale_by_adam(g, s, t), optlab.adam(0.1)),
    "adagrad": (lambda g, s, t: ref.scale_by_adagrad(g, s, t), optlab.adagrad(0.1)),
    "rmsprop": (lambda g, s, t: ref.scale_by_rmsprop(g, s, t), optlab.rmsprop(0.1)),
}


def group_steps(w, metric, strength):
    """Return the steps of the columns of w."""
    metric = np.broadcast_to(metric, w.shape)
    pairs = zip(w.T, metric.T, strict=True)
    return np.stack([ref.group_lasso_step(x, d, strength) for x, d in pairs], 1)


@pytest.mark.parametrize("name", REFERENCES)
def test_steps_are_those_of_the_reference(name):
    rng = np.random.default_rng(0)
    start = rng.normal(size=(6, 3))
    direction, tx = REFERENCES[name]
    both = {"l1": (l1(tx, 0.05), ref.l1_step), "group": (group_lasso(tx, 0.2), group_steps)}
    ours = {k: (jnp.asarray(start, jnp.float32), t.init(start)) for k, (t, _) in both.items()}
    theirs = dict.fromkeys(both, start)
    state, step = {}, jax.jit(lambda g, run: {
        k: stepping(t)(g, *run[k]) for k, (t, _) in both.items()
    })  # fmt: skip
    zeros = 0
    for t in range(1, 7):
        g = np.float32(rng.normal(size=start.shape) * np.geomspace(0.01, 1, 3))
        ours = step(g, ours)
        u, state = direction(np.float64(g), state, t)
        metric = 0.1 * metric_of(name, {"t": t, "state": state})
        for key, (_, proximal) in both.items():
            theirs[key] = proximal(theirs[key] - 0.1 * u, metric, {"l1": 0.05, "group": 0.2}[key])
            # A few dozen roundings, 6e-8 each; Newton's method ends where they begin.
            np.testing.assert_allclose(ours[key][0], theirs[key], rtol=1e-5, atol=2e-6)
            zeros += np.sum(theirs[key] == 0)
    assert zeros > 0


def test_groups_with_metrics_far_apart_come_to_the_root():
    rng = np.random.default_rng(1)
    w = rng.normal(size=(40, 8))
    metric = 10 ** rng.uniform(-4, 4, size=w.shape)
    # Strengths near that which takes a group to 0, and far below it.
    edge = np.linalg.norm(w / metric, axis=0).min()
    for strength in (0.999 * edge, 1e-3 * edge, 1.0):
        got = w * (1 - _group_shrinkage(jnp.float32(w), jnp.float32(strength * metric), (0,)))
        want = group_steps(w, metric, strength)
        # Newton's method in float32: a few dozen roundings of the largest weight, 6e-8 each.
        np.testing.assert_allclose(got, want, atol=3e-6 * abs(w).max())


# What else may stand in a tree, a chain, a state


def test_masked_weights_move_as_without_a_penalty():
    params = {"w": jnp.array([[0.5, -2.0]]), "b": jnp.array([0.5])}
    gradients = jax.tree.map(jnp.zeros_like, params)
    only = {"w": True, "b": False}
    for tx in (l1(optlab.sgd(1.0), 1.0, mask=only), group_lasso(optlab.sgd(1.0), 1.0)):
        new, _ = stepping(tx)(gradients, params, tx.init(params))
        np.testing.assert_array_equal(new["b"], params["b"])
        np.testing.assert_array_equal(new["w"], [[0.0, -1.0]])


def test_low_precision_and_wrappers_keep_zeros_exact():
    params = jnp.array([0.3, -0.7, 3.0], jnp.bfloat16)
    tx = optlab.skip_nonfinite(optlab.accumulate(l1(optlab.sgd(1.0), 1.0), 2))
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(jnp.zeros_like(params), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(params, jnp.array([0, 0, 2], jnp.bfloat16))


@pytest.mark.parametrize("make", [l1, group_lasso])
def test_a_rate_of_zero_changes_nothing(make):
    params = jnp.array([[0.5, 3.0], [0.0, 4.0]])
    tx = make(optlab.sgd(0.0), 1.0)
    updates, _ = tx.update(jnp.ones((2, 2)), tx.init(params), params)
    np.testing.assert_array_equal(updates, 0)


def test_weights_without_a_gradient_go_to_zero_at_once():
    # Adam's metric is 1/ε for them.
    params = jnp.array([0.5, 3.0])
    tx = l1(optlab.adam(0.1), 1e-3)
    new, _ = stepping(tx)(jnp.array([0.0, 1.0]), params, tx.init(params))
    np.testing.assert_allclose(new, [0, 2.9 - 1e-4], rtol=1e-6)


def test_the_strength_may_be_scheduled_and_is_read():
    tx = l1(optlab.sgd(1.0), lambda count: 1.0 + count)
    params = jnp.array([10.0])
    state = tx.init(params)
    for want in (9.0, 7.0):
        params, state = stepping(tx)(jnp.zeros(1), params, state)
        np.testing.assert_array_equal(params, want)
    assert optlab.hyperparams(state) == {"learning_rate": 1.0, "l1_strength": 2.0}


def test_both_penalties_make_sparse_groups():
    tx = group_lasso(l1(optlab.sgd(1.0), 1.0), 1.0)
    params = jnp.array([[0.5, 0.5], [4.0, 1.5]])
    new, _ = stepping(tx)(jnp.zeros((2, 2)), params, tx.init(params))
    np.testing.assert_allclose(new, [[0, 0], [2, 0]])


def test_a_rule_of_ones_own_may_have_a_metric():
    def halving(metric):
        leaf = lambda g, slots, h, p: (g / 2, slots)  # noqa: E731
        return rules.lift(rules.Rule("mine", leaf, metric=metric), rules.learning_rate("mine", 1.0))

    params = jnp.array([3.0])
    tx = l1(halving(lambda slots, h: 0.5), 1.0)
    updates, _ = tx.update(jnp.zeros(1), tx.init(params), params)
    np.testing.assert_array_equal(updates, -0.5)
    with pytest.raises(ValueError, match="l1: each rule before it must have a metric, got mine, "):
        l1(halving(None), 1.0)


@pytest.mark.slow
def test_it_passes_the_checks_of_transformations():
    only = ["odd_trees_pass_through", "runs_under_strict_settings", "scan_equals_loop"]
    only += ["sharded_equals_single_device", "low_precision_keeps_types_and_computes_in_float32"]
    tx = group_lasso(l1(optlab.adam(0.1), 0.01), 0.01)
    assert len(check_transformation(tx, only=only).outcomes) == len(only)


def test_bad_input_is_refused():
    def raises(message):
        return pytest.raises(ValueError, match=message)

    with raises("l1: tx must be an optimizer of optlab, whose metric is known, got Grad.*chain"):
        l1(optax.sgd(0.1), 1.0)
    with raises("group_lasso: each rule before it must have a metric, got scale_by_lion"):
        group_lasso(optlab.lion(0.1), 1.0)
    with raises("l1: each rule before it must have a metric, got scale_by_momentum"):
        l1(optlab.sgd(0.1, momentum=1.0), 1.0)
    with raises("l1: strength must be finite and >= 0, got strength=-1"):
        l1(optlab.sgd(0.1), -1)
    with raises("group_lasso: strength must be a number, a scalar array or a schedule, got str"):
        group_lasso(optlab.sgd(0.1), "much")
    with raises("l1: tx must have a learning rate, .* got only scale_by_adam; put it around the"):
        l1(optlab.scale_by_adam(), 1.0)
    with raises("group_lasso: axis must be an integer or None, got axis='rows'"):
        group_lasso(optlab.sgd(0.1), 1.0, axis="rows")
    with raises(r"must have the axis 2, got the shape \(2, 2\) at w; leave"):
        group_lasso(optlab.sgd(0.1), 1.0, axis=2).init({"w": jnp.ones((2, 2))})
    tx = l1(optlab.sgd(0.1), 1.0)
    with raises("sgd: update must be given the parameters"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
