"""Numbers derived by hand, and what they say about the compiled rules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab

ULP = float(np.finfo(np.float32).eps)


def run(tx, gradients, params=0.0):
    """Apply a list of scalar gradients; return the parameters after each, and the state."""
    params = jnp.asarray(params, jnp.float32)
    state, seen = tx.init(params), []
    for g in gradients:
        update, state = tx.update(jnp.asarray(g, jnp.float32), state, params)
        params = optax.apply_updates(params, update)
        seen.append(float(params))
    return seen, state


def test_adam_on_a_parabola():
    tx = optlab.adam(0.01)
    x, mu, nu = jnp.array(2.0), [], []
    state = tx.init(x)
    seen = []
    for _ in range(3):
        update, state = tx.update(2 * x, state, x)
        x = x + update
        seen.append(float(x))
        mu.append(float(state[0].mu))
        nu.append(float(state[0].nu))
    np.testing.assert_allclose(seen, [1.99, 1.98, 1.97], atol=5e-5)
    np.testing.assert_allclose(mu, [0.4, 0.758, 1.0782], atol=5e-5)
    np.testing.assert_allclose(nu, [0.016, 0.031824, 0.047474], atol=5e-7)


def test_momentum_accumulates_velocity():
    tx = optlab.scale_by_momentum(0.9)
    state = tx.init(jnp.zeros(()))
    velocity = []
    for g in (2.0, 1.8, 1.5, -0.5):
        update, state = tx.update(jnp.array(g), state)
        velocity.append(float(update))
    np.testing.assert_allclose(velocity, [2, 3.6, 4.74, 3.766], rtol=2 * ULP)


def test_nesterov_looks_one_step_ahead():
    # v = 2, then 0.9·2 + 1 = 2.8; directions 0.9·2 + 2 = 3.8 and 0.9·2.8 + 1 = 3.52.
    seen, _ = run(optlab.sgd(1.0, momentum=0.9, nesterov=True), [2.0, 1.0])
    np.testing.assert_allclose(seen, [-3.8, -7.32], rtol=4 * ULP)


def test_dampening_acts_from_the_first_update():
    # v = 0.5·2 = 1, then 0.9·1 + 0.5·2 = 1.9.
    seen, _ = run(optlab.sgd(1.0, momentum=0.9, dampening=0.5), [2.0, 2.0])
    np.testing.assert_allclose(seen, [-1.0, -2.9], rtol=4 * ULP)


def test_the_learning_rate_stands_outside_the_velocity():
    # Velocity 1, then 1.9; rates 1, then 0.1. Inside, the second step would be 0.9 + 0.1.
    seen, _ = run(optlab.sgd(lambda t: 0.1**t, momentum=0.9), [1.0, 1.0])
    np.testing.assert_allclose(seen, [-1.0, -1.19], rtol=4 * ULP)


def test_adagrad_divides_by_the_root_of_the_sum():
    seen, _ = run(optlab.adagrad(1.0, eps=0.0), [3.0, 4.0])
    np.testing.assert_allclose(seen, [-1.0, -1.8], rtol=4 * ULP)


def test_compensated_adagrad_gathers_squares_that_rounding_takes():
    # 1 + 2⁻²⁶ is 1 in float32, but 256 such squares are 32 steps of float32 at 1.
    def body(state, g):
        return tx.update(g, state)[1], None

    for compensated, gathered in ((False, 0.0), (True, 2.0**-18)):
        tx = optlab.scale_by_adagrad(1.0, compensated=compensated)
        state, _ = jax.lax.scan(body, tx.init(jnp.zeros(())), jnp.full(256, 2.0**-13))
        assert float(state.sum_of_squares) == 1 + gathered


def test_rmsprop_divides_by_the_root_of_the_average():
    # s = 0.1·100 = 10, then 0.9·10 = 9: the second gradient is 0.
    seen, state = run(optlab.rmsprop(1.0, decay=0.9, eps=0.0), [10.0, 0.0])
    np.testing.assert_allclose(seen, [-(10**0.5)] * 2, rtol=4 * ULP)
    np.testing.assert_allclose(state[0].mean_square, 9.0, rtol=4 * ULP)


def test_centered_rmsprop_never_takes_the_root_of_a_negative():
    tx = optlab.scale_by_rmsprop(centered=True, eps=1e-8)
    g = jnp.array(0.3)
    # Moments as rounding may leave them under a constant gradient: a variance of -6e-9.
    state = tx.init(g)._replace(mean=g, mean_square=g * g - 1e-8)
    direction, state = tx.update(g, state)
    assert state.mean_square < state.mean**2
    np.testing.assert_allclose(direction, 0.3 / 1e-8, rtol=4 * ULP)


def test_adams_first_step_is_the_learning_rate_whatever_the_gradient():
    for g in (1e-6, 1.0, 1e6):  # ε is 1% of the smallest
        seen, _ = run(optlab.adam(0.01), [g])
        np.testing.assert_allclose(seen, [-0.01], rtol=0.011)


def test_adamw_decays_apart_from_the_gradient_and_l2_does_not():
    # A zero gradient: decoupled decay moves by −αλθ = −0.1·0.5·2, L2 by Adam's first step, −α.
    decoupled, _ = run(optlab.adamw(0.1, weight_decay=0.5), [0.0], params=2.0)
    l2 = optax.chain(optlab.add_decayed_weights(0.5), optlab.adam(0.1))
    coupled, _ = run(l2, [0.0], params=2.0)
    np.testing.assert_allclose(decoupled, [1.9], rtol=4 * ULP)
    np.testing.assert_allclose(coupled, [1.9], rtol=4 * ULP)
    decoupled, _ = run(optlab.adamw(0.1, weight_decay=0.5), [0.0], params=20.0)
    coupled, _ = run(l2, [0.0], params=20.0)
    np.testing.assert_allclose(decoupled, [19.0], rtol=4 * ULP)
    np.testing.assert_allclose(coupled, [19.9], rtol=4 * ULP)


def run_layer(tx, gradients, params=(3.0, 4.0)):
    """Apply gradients of one array in float64; return the parameters after each."""
    with jax.enable_x64(True):
        params, seen = jnp.array(params), []
        state = tx.init(params)
        for g in gradients:
            update, state = tx.update(jnp.array(g), state, params)
            params = optax.apply_updates(params, update)
            seen.append(params)
        return np.array(seen)


DIGITS = {"rtol": 0, "atol": 6e-8}  # the worked examples have seven decimals


@pytest.mark.parametrize(
    ("options", "second"),
    [
        ({}, (2.9121015, 4.0159815)),
        ({"rate_in_velocity": False}, (2.9286015, 4.0129815)),
        ({"norm_of_sum": True}, (2.8820446, 4.0214464)),
    ],
    ids=["paper", "rate outside", "norm of the sum"],
)
def test_lars_takes_the_worked_steps(options, second):
    # w = (3, 4), g = (.8, −.6), λ .1, ξ .01, μ .9: the ratio is .01·5/(1 + .1·5) = 1/30, or
    # .01·5/‖(1.1, −.2)‖ = .0447214.
    first = (2.9508065, 4.0089443) if "norm_of_sum" in options else (2.9633333, 4.0066667)
    rate = lambda step: jnp.where(step == 0, 1.0, 0.5)  # noqa: E731
    tx = optlab.lars(rate, 0.1, True, 0.01, trust_ratio_mask=True, **options)
    np.testing.assert_allclose(run_layer(tx, [(0.8, -0.6)] * 2), [first, second], **DIGITS)


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({}, [(2.6342363, 4.3409060), (2.2383810, 4.6589080)]),
        ({"max_grad_norm": 1.0}, [(2.6342363, 4.3409061), (2.1396696, 4.4559298)]),
        ({"max_trust_ratio": 1.0}, [(2.897, 4.096), (2.8234630, 4.1551082)]),
    ],
    ids=["plain", "clipped gradients", "LAMBC"],
)
def test_lamb_takes_the_worked_steps(options, path):
    tx = optlab.lamb(0.1, weight_decay=0.01, mask=True, trust_ratio_mask=True, **options)
    np.testing.assert_allclose(run_layer(tx, [(6.0, -8.0), (0.3, 0.4)]), path, **DIGITS)


LAYER = np.array([[3.0, -1.0], [0.5, 2.0]])
SLOPES = [LAYER[::-1], LAYER.T - 1, 0.1 * LAYER]


@pytest.mark.parametrize(("tx", "c"), [(optlab.lars(0.5), 8.0), (optlab.lamb(0.5), 8.0)])
def test_layerwise_updates_grow_with_the_weights(tx, c):
    first = run_layer(tx, SLOPES[:1], LAYER) - LAYER
    scaled = run_layer(tx, SLOPES[:1], c * LAYER) - c * LAYER
    np.testing.assert_allclose(scaled, c * first, rtol=1e-12)  # a few roundings of float64


def test_lamb_whose_ratio_is_1_is_adamw():
    # Of arrays that it does not adapt it leaves Adam's direction and the decay.
    lamb = optlab.lamb(0.1, eps=1e-8, weight_decay=0.2, trust_ratio_mask=False)
    adamw = optlab.adamw(0.1, weight_decay=0.2)
    np.testing.assert_array_equal(run_layer(lamb, SLOPES, LAYER), run_layer(adamw, SLOPES, LAYER))


def test_lambs_clip_leaves_gradients_below_its_bound_alone():
    # The largest norm is √(4·25 + …) < 100; the smallest is above 0.1.
    runs = [
        run_layer(optlab.lamb(0.1, max_grad_norm=bound), SLOPES, LAYER)
        for bound in (None, 100.0, 0.1)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.abs(runs[2] - runs[0]).max() > 1e-3


@pytest.mark.parametrize("make", [optlab.scale_by_lars, optlab.scale_by_lamb])
def test_biases_and_scales_are_neither_adapted_nor_decayed_unless_asked(make):
    params = {"kernel": jnp.full((2, 3), 4.0), "bias": jnp.full(3, 4.0), "scale": jnp.array(4.0)}
    g = jax.tree.map(jnp.ones_like, params)
    mask = {"weight_decay_mask": True} if make is optlab.scale_by_lars else {"mask": True}
    default, decayed, adapted = (
        jax.tree.map(lambda u: float(u.mean()), tx.update(g, tx.init(params), params)[0])
        for tx in (
            make(weight_decay=0.5),
            make(weight_decay=0.5, **mask),
            make(weight_decay=0.5, **mask, trust_ratio_mask=True),
        )
    )
    # 1 + 0.5·4, which LARS makes 0.001·‖θ‖ long, and LAMB ‖θ‖.
    whole = 4e-3 if make is optlab.scale_by_lars else 4.0
    assert default == pytest.approx({"kernel": whole, "bias": 1.0, "scale": 1.0}, rel=2e-6)
    assert decayed == pytest.approx({"kernel": whole, "bias": 3.0, "scale": 3.0}, rel=2e-6)
    assert adapted == pytest.approx(dict.fromkeys(params, whole), rel=2e-6)


@pytest.mark.parametrize("make", [optlab.scale_by_lars, optlab.scale_by_lamb])
def test_zero_weights_and_zero_gradients_have_the_ratio_1(make):
    tx = make(weight_decay=0.5)
    zeros, ones = jnp.zeros((2, 2)), jnp.ones((2, 2))
    update, _ = tx.update(ones, tx.init(zeros), zeros)
    np.testing.assert_allclose(update, ones, rtol=2e-6)  # Adam's first step is g/(|g| + ε)
    if make is optlab.scale_by_lars:
        update, _ = tx.update(zeros, tx.init(ones), ones)
        np.testing.assert_array_equal(update, 0.5 * ones)


@pytest.mark.parametrize("weights", [1e-30, 1.0, 1e37])
@pytest.mark.parametrize("gradient", [1e-37, 1e-10, 1e20, 1e38])
def test_lars_has_the_norm_of_the_weights_where_the_ratio_is_no_float32(weights, gradient):
    """Squares, norms and the ratio itself, up to 1e74, are out of range; the update is not."""
    p, g = (x * np.array([[1.0, -0.5], [0.25, 3.0]], np.float32) for x in (weights, gradient))
    tx = optlab.scale_by_lars(trust_coefficient=0.5)
    update, _ = jax.jit(tx.update)(g, tx.init(p), p)
    np.testing.assert_allclose(update, 0.5 * weights * (g / np.float32(gradient)), rtol=1e-6)


def test_lars_takes_a_complex_array_for_one():
    # ‖θ‖ = 5, ‖g‖ = 10: the parts alone would have the ratios ½·3/6 and ½·4/8, which agree, so
    # they are swapped.
    p, g = jnp.full((1, 1), 3 + 4j), jnp.full((1, 1), 8 + 6j)
    tx = optlab.scale_by_lars(trust_coefficient=1.0)
    np.testing.assert_allclose(tx.update(g, tx.init(p), p)[0], [[4 + 3j]], rtol=1e-6)


def test_adafactor_keeps_a_row_and_a_column_whose_product_is_the_squares_of_rank_one():
    # g² = (1, 4)·(1, 9, 16): R = 26/3·(1, 4), C = 5/2·(1, 9, 16), and g/√V is the sign of g.
    g = jnp.array([[1.0, -3.0, 4.0], [-2.0, 6.0, 8.0]])
    tx = optlab.scale_by_adafactor(2)
    update, state = tx.update(g, tx.init(g), g)
    np.testing.assert_allclose(state.v_row, [26 / 3, 104 / 3], rtol=4 * ULP)
    np.testing.assert_allclose(state.v_col, [2.5, 22.5, 40], rtol=4 * ULP)
    np.testing.assert_allclose(update, np.sign(g), rtol=8 * ULP)
    assert state.v == optax.MaskedNode()


def test_adafactors_relative_step_is_a_share_of_the_weights():
    # The first U is the sign of g. RMS(θ) is 2 and the step 1% of it; with warm-up, of 1e-6.
    for options, step in (({}, 0.02), ({"warmup_init": True}, 2e-6)):
        tx = optlab.adafactor(**options)
        params = jnp.array([1.0, 7.0**0.5])
        update, state = tx.update(jnp.array([5.0, -0.1]), tx.init(params), params)
        np.testing.assert_allclose(update, [-step, step], rtol=8 * ULP)
        assert "learning_rate" not in optlab.hyperparams(state)
    # 40,000 updates later it is 1/√40,001 of RMS(θ).
    state = jax.tree.map(lambda x: x + 40_000 if x.dtype == jnp.int32 else x, state)
    update, _ = optlab.adafactor(factored=False).update(params, state, params)
    # The average at 1 − 40,001^−0.8 holds the square of the first gradient, 25 and 0.01.
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(update**2)), 2 / 40_001**0.5, rtol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"momentum": 0.9, "weight_decay_rate": 0.01, "clipping_threshold": None},
    ],
)
def test_adafactor_agrees_with_optax_on_vectors_and_matrices(options):
    params = {"factored": (4, 6), "narrow": (6, 2), "bias": (7,), "scalar": ()}
    params = {k: np.linspace(-1, 2, int(np.prod(s))).reshape(s) for k, s in params.items()}
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.array, params)
        ours, theirs = optlab.adafactor(0.1, 4, **options), optax.adafactor(0.1, 4, **options)
        states = ours.init(params), theirs.init(params)
        for i in range(1, 4):
            g = jax.tree.map(lambda p, i=i: jnp.sin(i * p + 1), params)
            u, first = ours.update(g, states[0], params)
            v, second = theirs.update(g, states[1], params)
            states = first, second
            # Optax forms t^−0.8, and keeps its average of steps, in float32. They are up to 0.5.
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-7), u, v)


def test_adafactor_takes_stacked_layers_for_separate_ones():
    rng = np.random.default_rng(0)
    sizes = np.array([1.0, 9.0, 0.1], np.float32)[:, None, None]
    stack, g = (sizes * rng.normal(size=(3, 4, 5)).astype(np.float32) for _ in range(2))
    tx = optlab.adafactor(0.1, 3)

    def first(g, p):
        return tx.update(g, tx.init(p), p)[0]

    together = first({"layers": {"kernel": g}}, {"layers": {"kernel": stack}})
    for i in range(len(stack)):
        alone = first({"kernel": g[i]}, {"kernel": stack[i]})
        np.testing.assert_allclose(together["layers"]["kernel"][i], alone["kernel"], rtol=16 * ULP)


def test_adafactor_factors_the_axes_that_it_is_told():
    params = {"query": jnp.zeros((6, 2, 3)), "other": jnp.zeros((6, 2, 3))}
    axes = {"query": optlab.rules.Axes(input=(0,), output=(1, 2))}
    state = optlab.scale_by_adafactor(2, axes=axes).init(params)
    # Of three axes with a name that says nothing the first is taken for a stack.
    assert jax.tree.map(jnp.shape, state.v_row) == {"query": (6,), "other": (6, 2)}
    assert jax.tree.map(jnp.shape, state.v_col) == {"query": (2, 3), "other": (6, 3)}
    g = jax.tree.map(lambda p: p + 2.0, params)
    updates, _ = optlab.scale_by_adafactor(2, axes=axes).update(g, state, params)
    np.testing.assert_allclose(updates["query"], 1.0, rtol=8 * ULP)


def test_lbfgs_says_what_its_line_search_needs():
    tx, x = optlab.lbfgs(), jnp.ones(2)
    with pytest.raises(ValueError, match=r"^lbfgs: update must be given value, grad and value_fn"):
        tx.update(x, tx.init(x), x, value=1.0)
    with pytest.raises(ValueError, match=r"^lbfgs: memory_size must be an integer >= 1, got"):
        optlab.lbfgs(memory_size=0)


def test_l2_and_decoupled_decay_agree_for_sgd():
    l2 = optax.chain(optlab.add_decayed_weights(0.5), optlab.sgd(0.1))
    decoupled = optax.chain(optlab.add_decayed_weights(0.5), optlab.scale_by_learning_rate(0.1))
    assert run(l2, [1.0, -2.0], params=3.0)[0] == run(decoupled, [1.0, -2.0], params=3.0)[0]


def test_global_norm_clip():
    g = jnp.array([6.0, -8.0, 3.0, -4.0, 2.0])
    np.testing.assert_allclose(optlab.global_norm(g), 129**0.5, rtol=2 * ULP)
    tx = optlab.clip_by_global_norm(5.0)
    clipped, _ = tx.update(g, tx.init(g))
    np.testing.assert_allclose(clipped, [2.6414, -3.5218, 1.3207, -1.7609, 0.8805], atol=5e-5)


def test_params_ema_averages_the_parameters_after_the_update():
    tx = optax.chain(optlab.sgd(1.0), optlab.params_ema(0.9))
    _, state = run(tx, [1.0, 1.0], params=10.0)  # parameters 9, 8
    np.testing.assert_allclose(optlab.averaged_params(state), 0.9 * 9.9 + 0.1 * 8, rtol=4 * ULP)


def test_params_ema_with_warm_up_forgets_the_start_at_once():
    tx = optax.chain(optlab.sgd(1.0), optlab.params_ema(0.999, warmup_power=1.0))
    seen, state = run(tx, [1.0, 1.0, 1.0], params=10.0)
    # Power 1 gives the shares 1, 1/2, 1/3: the plain mean of what came after the start.
    np.testing.assert_allclose(optlab.averaged_params(state), np.mean(seen), rtol=4 * ULP)


def test_averaged_params_survive_donation_and_fill_what_no_average_covers():
    tx = optax.chain(
        optax.masked(optlab.params_ema(0.5), {"a": True, "b": False}), optlab.params_ema(0.9)
    )
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.zeros(3)}
    state = tx.init(params)
    with pytest.raises(ValueError, match="one average of each parameter, got 2 of"):
        optlab.averaged_params(state)
    with pytest.raises(ValueError, match="must hold an average of the parameters, got"):
        optlab.averaged_params(optlab.adam(0.1).init(params))
    average = optlab.averaged_params(state[0], params)
    assert {k: x.dtype for k, x in average.items()} == {k: x.dtype for k, x in params.items()}
    jax.jit(lambda state, params: (state, params), donate_argnums=(0, 1))(state, params)
    assert float(average["a"].sum() + average["b"].sum()) == 2.0
    with pytest.raises(ValueError, match="params must have the structure of the parameters"):
        optlab.averaged_params(tx.init(average)[1], {"a": jnp.ones(2)})


def test_warmup_cosine_table():
    schedule = optlab.schedules.warmup_cosine(peak_value=1e-3, warmup_steps=100, decay_steps=1000)
    got = [float(schedule(t)) for t in (0, 50, 100, 300, 700, 1000)]
    np.testing.assert_allclose(got, [0, 0.0005, 0.001, 0.000883, 0.00025, 0], atol=5e-7)


def test_a_softmax_classifier_starts_near_log_c():
    logits = 0.01 * jax.random.normal(jax.random.key(0), (512, 10))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(512) % 10).mean()
    np.testing.assert_allclose(loss, np.log(10), atol=0.01)
