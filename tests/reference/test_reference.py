"""The float64 formula sheets, against numbers derived by hand, exact arithmetic and Optax."""

import ast
import inspect
import math
import sys
from decimal import Decimal, localcontext
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import reference as ref
from optlab import registry

EXACT = {"rtol": 4e-15, "atol": 0}  # some twenty roundings of float64, 2.2e-16 each


def run(rule, gradients, **options):
    """Feed a direction's rule with gradients; return its directions and its last state."""
    directions, state = [], {}
    for t, g in enumerate(gradients, 1):
        direction, state = rule(g, state, t, **options)
        directions.append(direction)
    return np.array(directions), state


def walk(optimizer, p, gradients, **options):
    """Feed an optimizer with gradients; return the parameter after every update."""
    path, state = [], {}
    for t, g in enumerate(gradients, 1):
        p, state = optimizer(p, g, state, t, **options)
        path.append(p)
    return np.array(path)


# The worked facts


def test_adam_on_a_parabola_takes_the_worked_steps():
    x, state, mu, nu, path = 2.0, {}, [], [], []
    for t in (1, 2, 3):
        x, state = ref.adam(x, 2 * x, state, t, learning_rate=0.01)
        mu.append(state["mu"])
        nu.append(state["nu"])
        path.append(x)
    np.testing.assert_allclose(path, [1.99, 1.98, 1.97], atol=5e-5)
    np.testing.assert_allclose(mu, [0.4, 0.758, 1.0782], atol=5e-5)
    np.testing.assert_allclose(nu, [0.016, 0.031824, 0.047474], atol=5e-7)


def test_momentum_gathers_the_worked_velocities():
    directions, state = run(ref.scale_by_momentum, [2.0, 1.8, 1.5, -0.5], momentum=0.9)
    np.testing.assert_allclose(directions, [2, 3.6, 4.74, 3.766], **EXACT)
    assert state["velocity"] == directions[-1]


def test_global_norm_clips_the_worked_vector():
    g = [6.0, -8.0, 3.0, -4.0, 2.0]
    assert ref.global_norm([g]) == math.sqrt(129)
    (clipped,) = ref.clip_by_global_norm([g], 5.0)
    np.testing.assert_allclose(clipped, [2.6414, -3.5218, 1.3207, -1.7609, 0.8805], atol=5e-5)
    np.testing.assert_allclose(clipped, np.array(g) * 5 / math.sqrt(129), **EXACT)


def test_warmup_cosine_passes_the_worked_rates():
    def rate(step):
        return ref.warmup_cosine(step, peak_value=1e-3, warmup_steps=100, decay_steps=1000)

    assert [rate(0), rate(50), rate(100), rate(1000)] == [0, 0.0005, 0.001, 0]
    assert rate(300) == pytest.approx(0.0005 * (1 + math.cos(2 * math.pi / 9)), rel=1e-15)
    assert rate(300) == pytest.approx(0.000883, abs=5e-7)
    assert rate(700) == pytest.approx(0.00025, rel=1e-15)  # cos(2π/3) = −1/2


@pytest.mark.parametrize("g", [1e-3, -1.0, 7.0, 1e30])
def test_adams_first_step_is_the_learning_rate_whatever_the_gradient(g):
    p, _ = ref.adam(0.0, g, {}, 1, learning_rate=0.01)
    assert p == pytest.approx(-math.copysign(0.01, g), rel=1.1e-8 / abs(g) + 1e-14)  # ε/|g|


# Directions, by hand


def test_momentum_dampens_from_the_first_update_on():
    directions, _ = run(ref.scale_by_momentum, [4.0, 8.0], momentum=0.5, dampening=0.25)
    assert directions.tolist() == [3, 7.5]  # ¾·4; ½·3 + ¾·8


def test_nesterov_looks_ahead_along_the_velocity():
    options = {"momentum": 0.5, "nesterov": True}
    directions, state = run(ref.scale_by_momentum, [4.0, 8.0], **options)
    assert directions.tolist() == [6, 13]  # v = 4, 10; ½·4 + 4; ½·10 + 8
    assert state["velocity"] == 10
    directions, _ = run(ref.scale_by_momentum, [4.0, 8.0], dampening=0.25, **options)
    assert directions.tolist() == [4.5, 9.75]  # v = 3, 7.5; ½·3 + 3; ½·7.5 + 6


def test_nesterov_makes_the_path_of_the_form_with_a_gradient_taken_ahead():
    rate, beta = 0.02, 0.9
    ahead, state = 2.0, {}  # θ of the sheet
    behind, velocity = 2.0, 0.0  # θ and v of Sutskever et al., the rate inside the velocity
    for t in range(1, 21):
        slope = 2 * (behind + beta * velocity)
        velocity = beta * velocity - rate * slope
        behind = behind + velocity
        ahead, state = ref.sgd(
            ahead, 2 * ahead, state, t, learning_rate=rate, momentum=beta, nesterov=True
        )
        assert ahead == pytest.approx(behind + beta * velocity, rel=1e-12)


def test_adagrad_divides_by_the_root_of_the_sum():
    directions, state = run(ref.scale_by_adagrad, [3.0, 4.0, -12.0], eps=0.0)
    np.testing.assert_allclose(directions, [1, 4 / 5, -12 / 13], **EXACT)
    assert state["sum_of_squares"] == 169
    directions, _ = run(ref.scale_by_adagrad, [3.0], eps=1.0, initial_accumulator_value=16.0)
    assert directions[0] == 0.5  # 3/(√25 + 1)


def test_rmsprop_divides_by_the_root_of_the_average():
    directions, state = run(ref.scale_by_rmsprop, [4.0, 2.0], decay=0.75, eps=0.0)
    assert directions[0] == 2  # s = 16/4 = 4
    assert directions[1] == 1  # s = 3 + 1 = 4
    assert state == {"mean_square": 4}


def test_rmsprop_adds_eps_outside_or_inside_the_root():
    options = {"decay": 0.75, "eps": 5.0}
    assert run(ref.scale_by_rmsprop, [4.0], **options)[0] == 4 / 7
    assert run(ref.scale_by_rmsprop, [4.0], eps_in_sqrt=True, **options)[0] == 4 / 3


def test_rmsprop_starts_the_average_at_the_initial_scale():
    directions, _ = run(ref.scale_by_rmsprop, [4.0], decay=0.75, eps=0.0, initial_scale=16.0)
    assert directions[0] == 1  # s = ¾·16 + ¼·16


def test_centered_rmsprop_divides_by_the_standard_deviation():
    directions, state = run(ref.scale_by_rmsprop, [1.0, 3.0], decay=0.5, eps=0.0, centered=True)
    # s = 1/2, 19/4; m = 1/2, 7/4; s − m² = 1/4, 27/16
    np.testing.assert_allclose(directions, [2, 4 / math.sqrt(3)], **EXACT)
    assert state == {"mean_square": 19 / 4, "mean": 7 / 4}


@pytest.mark.parametrize(("eps_in_sqrt", "denominator"), [(False, 0.25), (True, 0.5)])
def test_centered_rmsprop_clamps_a_negative_variance(eps_in_sqrt, denominator):
    state = {"mean_square": np.array(0.99), "mean": np.array(1.0)}
    direction, _ = ref.scale_by_rmsprop(
        1.0, state, 9, decay=0.5, eps=0.25, eps_in_sqrt=eps_in_sqrt, centered=True
    )
    assert direction == 1 / denominator


def test_centered_rmsprop_agrees_with_the_recurrence_of_the_variance_itself():
    decay, mean, variance, state = 0.9, 0.0, 0.0, {}
    for t, g in enumerate(np.random.default_rng(1).normal(1.0, 2.0, 100), 1):
        variance = decay * (variance + (1 - decay) * (g - mean) ** 2)
        mean = mean + (1 - decay) * (g - mean)
        direction, state = ref.scale_by_rmsprop(g, state, t, decay=decay, centered=True)
        assert direction == pytest.approx(g / (math.sqrt(variance) + 1e-8), rel=1e-12)


def test_amsgrad_keeps_the_largest_corrected_second_moment():
    options = {"b1": 0.0, "b2": 0.5, "eps": 0.0}
    # v = 8, 9/2; v̂ = 16, 6: the larger v̂ is 16 (the larger v, corrected, would be 32/3)
    directions, state = run(ref.scale_by_adam, [4.0, 1.0], amsgrad=True, **options)
    np.testing.assert_allclose(directions, [1, 1 / 4], **EXACT)
    np.testing.assert_allclose([state["nu"], state["nu_max"]], [4.5, 16], **EXACT)
    directions, state = run(ref.scale_by_adam, [4.0, 1.0], **options)
    np.testing.assert_allclose(directions, [1, 1 / math.sqrt(6)], **EXACT)
    assert "nu_max" not in state


def test_nadam_corrects_momentum_one_update_ahead():
    options = {"b1": 0.5, "b2": 0.0, "eps": 0.0, "nesterov": True}
    # m = 1/2, 5/4; m̂ = ½·½/(3/4) + ½/(1/2), ½·5/4/(7/8) + 1/(3/4)
    directions, _ = run(ref.scale_by_adam, [1.0, 2.0], **options)
    np.testing.assert_allclose(directions, [4 / 3, (5 / 7 + 4 / 3) / 2], **EXACT)


def test_adam_adds_eps_outside_and_eps_root_inside_the_root():
    assert run(ref.scale_by_adam, [3.0], eps=0.0, eps_root=16.0)[0] == pytest.approx(3 / 5)
    assert run(ref.scale_by_adam, [3.0], eps=1.0, eps_root=16.0)[0] == pytest.approx(1 / 2)


def test_adam_without_averages_takes_the_sign():
    directions, _ = run(ref.scale_by_adam, [3.0, -5.0, 2.0], b1=0.0, b2=0.0, eps=0.0)
    assert directions.tolist() == [1, -1, 1]


def test_adam_corrects_the_bias_of_a_scheduled_beta_by_the_product():
    direction, state = ref.scale_by_adam(1.0, {}, 1, b1=0.5, b2=0.0, eps=0.0)
    direction, state = ref.scale_by_adam(2.0, state, 2, b1=0.75, b2=0.0, eps=0.0)
    # m = ¾·½ + ¼·2 = 7/8; Πβ₁ = 3/8; m̂ = 7/5
    assert direction == pytest.approx(7 / 10, rel=1e-15)
    direction, state = ref.scale_by_adam(4.0, state, 3, b1=0.5, b2=0.0, eps=0.0, nesterov=True)
    # m = 39/16; Πβ₁ = 3/16, then 3/32; m̂ = ½·39/16/(29/32) + ½·4/(13/16)
    exact = (Fraction(39, 29) + Fraction(32, 13)) / 4
    assert direction == pytest.approx(float(exact), rel=1e-15)


def test_adam_leaves_a_constant_gradient_unbiased_under_any_schedule_of_betas():
    state = {}
    for t in range(1, 30):
        b1, b2 = 0.5 + 0.4 * math.cos(t), 0.99 - 0.5 / t
        direction, state = ref.scale_by_adam(3.0, state, t, b1=b1, b2=b2, eps=0.0)
        assert direction == pytest.approx(1.0, rel=1e-13)


def test_adam_forgets_everything_where_a_beta_is_zero():
    state = {}
    for t, (g, beta) in enumerate([(5.0, 0.0), (3.0, 0.5), (2.0, 0.0), (4.0, 0.0)], 1):
        direction, state = ref.scale_by_adam(g, state, t, b1=beta, b2=0.0, eps=0.0)
        # the weights of 5 and 3 at t = 2 are ½ and ½; their sum needs no correction
        assert direction == {1: 1, 2: 4 / 3, 3: 1, 4: 1}[t]


@pytest.mark.parametrize("beta", [0.9, 0.999, 0.99999, 0.999999])
@pytest.mark.parametrize("t", [1, 2, 7, 1000, 10**6])
def test_adams_bias_correction_is_exact_to_rounding_at_any_update(beta, t):
    state = {} if t == 1 else {"mu": 0.5, "nu": 0.25}
    # β₁ = 0 makes m̂ = g, and a state holds v = g²: what is left is the correction of v
    direction, _ = ref.scale_by_adam(0.5, state, t, b1=0.0, b2=beta, eps=0.0)
    with localcontext(prec=50):
        b, half = Decimal(beta), Decimal("0.5")
        nu = half**2 if state else (1 - b) * half**2
        exact = half / (nu / (1 - b**t)).sqrt()
    assert direction == pytest.approx(float(exact), rel=5e-16)


def test_the_carried_logarithm_of_a_constant_beta_does_not_drift():
    _, state = run(ref.scale_by_adam, np.ones(1000), b1=0.9, b2=0.999)
    assert state["mean_log_b1"] == math.log(0.9)
    assert state["mean_log_b2"] == math.log(0.999)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_adam_agrees_with_fifty_digits(nesterov, amsgrad):
    gradients = [0.3, -1.7, 2.5e-3, 40.0, -0.6, 0.0, 1e-9, -3.25]
    b1, b2, eps, eps_root = 0.9, 0.999, 1e-8, 1e-12
    expected = []
    with localcontext(prec=50):
        beta1, beta2, m, v, largest = Decimal(b1), Decimal(b2), Decimal(0), Decimal(0), Decimal(0)
        for t, g in enumerate(map(Decimal, gradients), 1):
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g * g
            m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
            if nesterov:
                m_hat = beta1 * m / (1 - beta1 ** (t + 1)) + (1 - beta1) * g / (1 - beta1**t)
            largest = max(largest, v_hat)
            v_hat = largest if amsgrad else v_hat
            expected.append(float(m_hat / ((v_hat + Decimal(eps_root)).sqrt() + Decimal(eps))))
    directions, _ = run(
        ref.scale_by_adam,
        gradients,
        b1=b1,
        b2=b2,
        eps=eps,
        eps_root=eps_root,
        nesterov=nesterov,
        amsgrad=amsgrad,
    )
    np.testing.assert_allclose(directions, expected, rtol=2e-14)  # m cancels by a factor ~10


# Optimizers, by hand


def test_sgd_steps_along_the_gradient_and_keeps_no_state():
    p, state = ref.sgd(1.0, 4.0, {}, 1, learning_rate=0.5)
    assert p == -1
    assert state == {}


def test_a_new_rate_acts_at_once_on_the_whole_velocity():
    p, state = ref.sgd(0.0, 1.0, {}, 1, learning_rate=1.0, momentum=0.5)
    p, state = ref.sgd(p, 0.0, state, 2, learning_rate=0.25, momentum=0.5)
    assert p == -1.125  # −1 − ¼·½; the rate inside the buffer would give −1.5
    p, state = ref.rmsprop(
        0.0, 1.0, {}, 1, learning_rate=1.0, decay=0.0, eps=1.0, momentum=0.5
    )  # d = ½
    p, state = ref.rmsprop(p, 0.0, state, 2, learning_rate=0.25, decay=0.0, eps=1.0, momentum=0.5)
    assert p == -0.5625  # −½ − ¼·¼


def test_rmsprop_with_nesterov_looks_ahead_along_the_quotients():
    options = {"learning_rate": 1.0, "decay": 0.0, "eps": 0.0, "momentum": 0.5}
    path = walk(ref.rmsprop, 0.0, [3.0, 7.0], nesterov=True, **options)
    assert path.tolist() == [-1.5, -3.25]  # b = 1, 3/2; d′ = 3/2, 7/4
    path = walk(ref.rmsprop, 0.0, [3.0, 7.0], **options)
    assert path.tolist() == [-1, -2.5]


def test_decoupled_decay_differs_from_the_penalty_for_adam_and_not_for_sgd():
    p, g, rate, decay = 2.0, 3.0, 0.5, 0.25
    decoupled, _ = ref.adamw(p, g, {}, 1, learning_rate=rate, eps=0.0, weight_decay=decay)
    assert decoupled == pytest.approx(2 - 0.5 * (1 + 0.25 * 2))
    penalized = ref.add_decayed_weights(g, p, weight_decay=decay)
    assert penalized == 3.5
    coupled, _ = ref.adam(p, penalized, {}, 1, learning_rate=rate, eps=0.0)
    assert coupled == pytest.approx(2 - 0.5)  # the penalty is normalized away
    direction, _ = ref.scale_by_momentum(g, {}, 1)
    after = p - rate * ref.add_decayed_weights(direction, p, weight_decay=decay)
    assert ref.sgd(p, penalized, {}, 1, learning_rate=rate)[0] == after


@pytest.mark.parametrize(
    ("optimizer", "direction", "options"),
    [
        (ref.sgd, ref.scale_by_momentum, {"momentum": 0.8, "dampening": 0.3, "nesterov": True}),
        (ref.adagrad, ref.scale_by_adagrad, {"eps": 0.5, "initial_accumulator_value": 2.0}),
        (
            ref.rmsprop,
            ref.scale_by_rmsprop,
            {
                "decay": 0.6,
                "eps": 0.5,
                "eps_in_sqrt": True,
                "initial_scale": 2.0,
                "centered": True,
            },
        ),
        (
            ref.adam,
            ref.scale_by_adam,
            {
                "b1": 0.7,
                "b2": 0.8,
                "eps": 0.5,
                "eps_root": 0.1,
                "nesterov": True,
                "amsgrad": True,
            },
        ),
    ],
)
def test_optimizers_step_along_their_directions(optimizer, direction, options):
    gradients = [2.0, -1.0, 0.5]
    path = walk(optimizer, 1.0, gradients, learning_rate=0.1, **options)
    directions, _ = run(direction, gradients, **options)
    np.testing.assert_allclose(path, 1 - 0.1 * np.cumsum(directions), rtol=1e-14)
    if optimizer is ref.adam:
        plain = walk(ref.adamw, 1.0, gradients, learning_rate=0.1, weight_decay=0.0, **options)
        np.testing.assert_array_equal(plain, path)


def test_zero_gradients_do_not_move_the_parameter():
    for optimizer in (ref.sgd, ref.adagrad, ref.rmsprop, ref.adam):
        assert walk(optimizer, 1.5, [0.0, 0.0], learning_rate=0.1).tolist() == [1.5, 1.5]


@pytest.mark.parametrize("rule", [ref.scale_by_adagrad, ref.scale_by_rmsprop, ref.scale_by_adam])
def test_zero_gradients_without_eps_are_zero_by_zero(rule):
    with pytest.warns(RuntimeWarning, match="invalid value"):
        direction, _ = rule(np.zeros(2), {}, 1, eps=0.0)
    assert np.isnan(direction).all()


# Transformations


def test_global_norm_spans_all_arrays():
    arrays = [np.array([[2.0, 3.0]]), np.array(6.0), np.zeros((0, 4))]
    assert ref.global_norm(arrays) == 7
    assert ref.global_norm([]) == 0
    assert ref.global_norm([np.zeros(3)]) == 0


@pytest.mark.parametrize("scale", [1.0, 1e-45, 1e-30, 1e37, 1e-200, 1e150])
def test_global_norm_is_right_to_rounding_at_any_scale(scale):
    x = np.random.default_rng(0).normal(size=1000) * scale
    exact = sum(Fraction(v) ** 2 for v in x.tolist())
    with localcontext(prec=60):
        root = (Decimal(exact.numerator) / Decimal(exact.denominator)).sqrt()
    assert ref.global_norm([x[:600], x[600:]]) == pytest.approx(float(root), rel=2.3e-16)


def test_global_norm_reaches_the_ends_of_float32():
    big, small = np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal
    assert ref.global_norm([np.full(16, big)]) == 4 * float(big)
    assert ref.global_norm([np.full(16, small)]) == 4 * float(small)


def test_global_norm_of_nan_is_nan_and_of_infinity_infinite():
    assert math.isnan(ref.global_norm([[1.0, math.nan], [math.inf]]))
    assert ref.global_norm([[1.0], [-math.inf]]) == math.inf


def test_clipping_by_norm_keeps_the_direction_of_all_arrays_together():
    clipped = ref.clip_by_global_norm([np.array([3.0]), np.array([[4.0]])], 1.0)
    np.testing.assert_allclose([clipped[0][0], clipped[1][0, 0]], [0.6, 0.8], **EXACT)
    assert [c.shape for c in clipped] == [(1,), (1, 1)]


@pytest.mark.parametrize("max_norm", [5.0, 6.0, math.inf])
def test_clipping_by_norm_leaves_a_short_gradient_alone(max_norm):
    (same,) = ref.clip_by_global_norm([np.array([3.0, 4.0])], max_norm)
    assert same.tolist() == [3, 4]


def test_clipping_by_norm_leaves_zero_alone():
    for max_norm in (0.0, 1.0):
        assert ref.clip_by_global_norm([np.zeros(2)], max_norm)[0].tolist() == [0, 0]
    assert ref.clip_by_global_norm([np.ones(2)], 0.0)[0].tolist() == [0, 0]


def test_clipping_by_value_limits_every_entry():
    g = [-3.0, -2.0, 0.5, 2.0, 9.0]
    assert ref.clip_by_value(g, 2.0).tolist() == [-2, -2, 0.5, 2, 2]


def test_params_ema_moves_from_the_initial_parameters():
    average = np.array([8.0])
    for t, p in enumerate([4.0, 16.0], 1):
        average = ref.params_ema([p], average, t, decay=0.75)
    assert average.tolist() == [9.25]  # ¾·8 + ¼·4 = 7; ¾·7 + ¼·16


def test_params_ema_with_a_warmup_starts_from_the_first_update():
    average = 1e6
    for t, p in enumerate([4.0, 16.0, 1.0], 1):  # a = 0, 1/2, then 2/3 held at 0.6
        average = ref.params_ema(p, average, t, decay=0.6, warmup_power=1)
        assert average == pytest.approx({1: 4, 2: 10, 3: 6.4}[t], rel=1e-15)
    assert ref.params_ema(0.0, 1.0, 4, decay=0.999, warmup_power=0.5) == 0.5  # 1 − 1/√4


def test_params_ema_with_decay_one_and_a_linear_warmup_is_the_plain_mean():
    values = np.random.default_rng(2).normal(size=50)
    average = math.pi
    for t, p in enumerate(values, 1):
        average = ref.params_ema(p, average, np.int64(t), decay=1.0, warmup_power=1)
    assert average == pytest.approx(np.mean(values), rel=1e-13)


@pytest.mark.parametrize(
    ("rule", "options", "weights"),
    [
        (ref.params_average, {}, [1 / 4] * 4),
        (ref.params_average, {"start": 1, "every": 2}, [0, 1 / 2, 0, 1 / 2]),
        (ref.params_power_ema, {"gamma": 0.0}, [1 / 4] * 4),
        (ref.params_power_ema, {"sigma_rel": 12**-0.5}, [1 / 4] * 4),
        (ref.params_power_ema, {"gamma": 1.0}, [1 / 16, 3 / 16, 5 / 16, 7 / 16]),
        (ref.params_lawa, {"k": 2, "every": 1}, [0, 0, 1 / 2, 1 / 2]),
        (ref.params_lawa, {"k": 5, "every": 2}, [0, 1 / 2, 0, 1 / 2]),
    ],
)
def test_averages_give_four_parameters_their_weights(rule, options, weights):
    state = {}
    for t in range(1, 5):
        average, state = rule(frozen(np.eye(4)[t - 1]), state, t, **options)
        state = {k: frozen(v) if isinstance(v, np.ndarray) else v for k, v in state.items()}
    np.testing.assert_allclose(average, weights, rtol=1e-14, atol=0)


def test_an_average_of_no_parameters_is_none():
    assert ref.params_average(1.0, {}, 1, start=1)[0] is None
    assert ref.params_lawa(1.0, {}, 1, every=2)[0] is None


@pytest.mark.parametrize(
    ("sigma_rel", "gamma"),
    [(0.01, 96.99), (0.03, 30.32), (0.15, 3.5579), (0.20, 1.8262), (0.25, 0.7198)],
)
def test_a_relative_width_has_its_exponent(sigma_rel, gamma):
    assert ref.power_ema_gamma(sigma_rel) == pytest.approx(gamma, abs=10 ** -len(f"{gamma}"[3:]))


def test_named_warmups_are_those_of_timm_and_diffusers():
    for s, power, ratio in ((1, 0.370, 0.18), (10, 0.798, 0.55), (100, 0.9539, 0.918)):
        for warmup, decay in (("timm", power), ("diffusers", ratio)):
            average = ref.params_ema(0.0, 1.0, s + 1, decay=1.0, warmup=warmup)
            assert average == pytest.approx(decay, abs=2e-3)  # the table has two or three digits
            assert ref.params_ema(0.0, 1.0, 1, decay=1.0, warmup=warmup) == 0.0


# Schedules


def test_constant_never_changes():
    assert [ref.constant(step, value=3) for step in (0, 7, 10**9)] == [3, 3, 3]


def test_linear_meets_both_ends_and_stays():
    def at(step):
        return ref.linear(step, init_value=0.3, end_value=0.1, transition_steps=4)

    assert at(0) == 0.3
    assert at(1) == pytest.approx(0.25)
    assert at(3) == pytest.approx(0.15)
    assert [at(4), at(5), at(10**9)] == [0.1] * 3


def test_cosine_passes_its_thirds_and_stays():
    def at(step):
        return ref.cosine(step, init_value=5.0, decay_steps=12, end_value=1.0)

    assert at(0) == 5
    assert at(4) == pytest.approx(4.0, rel=1e-15)  # 1 + 2(1 + ½)
    assert at(6) == pytest.approx(3.0, rel=1e-15)
    assert at(8) == pytest.approx(2.0, rel=1e-15)
    assert [at(12), at(13), at(10**9)] == [1] * 3


def test_warmup_cosine_runs_between_its_three_values():
    options = {"peak_value": 5.0, "warmup_steps": 4, "decay_steps": 16}
    at = [ref.warmup_cosine(t, init_value=1.0, end_value=2.0, **options) for t in range(20)]
    assert at[:5] == [1, 2, 3, 4, 5]
    assert at[10] == pytest.approx(3.5, rel=1e-15)
    assert at[16:] == [2] * 4


def test_schedules_of_no_length_jump_to_the_end():
    assert ref.linear(0, init_value=1.0, end_value=2.0, transition_steps=0) == 2
    assert ref.cosine(0, init_value=1.0, decay_steps=0, end_value=0.25) == 0.25
    assert ref.warmup_cosine(0, peak_value=1.0, warmup_steps=0, decay_steps=8) == 1
    jump = [ref.warmup_cosine(t, peak_value=1.0, warmup_steps=2, decay_steps=2) for t in range(4)]
    assert jump == [0, 0.5, 0, 0]


# What holds for every sheet

GRADIENT_RULES = [
    (row.direction_reference, {**row.fixed, **sample})
    for row in registry.DIRECTIONS.values()
    for sample in row.samples
]
OF_PARAMETERS = {r.direction_reference for r in registry.DIRECTIONS.values() if r.needs_params}
OPTIMIZERS = [
    (ref.sgd, {}),
    (ref.sgd, {"momentum": 0.9, "nesterov": True}),
    (ref.adagrad, {}),
    (ref.rmsprop, {"centered": True, "momentum": 0.9, "nesterov": True}),
    (ref.adam, {"amsgrad": True}),
    (ref.adamw, {}),
]


def frozen(x, dtype=np.float64):
    x = np.array(x, dtype=dtype)
    x.flags.writeable = False
    return x


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("rule", "options"), GRADIENT_RULES + OPTIMIZERS)
def test_rules_return_new_float64_arrays_and_change_nothing(rule, options, shape, dtype):
    arrays = [frozen(np.random.default_rng(3).normal(size=shape), dtype)]
    if (rule, options) in OPTIMIZERS or rule in OF_PARAMETERS:
        arrays = [frozen(np.ones(shape), dtype), *arrays]
    if (rule, options) in OPTIMIZERS:
        options = {**options, "learning_rate": 0.1}
    state = {}
    for t in (1, 2, 3):
        before = dict(state)
        result, new_state = rule(*arrays, state, t, **options)
        assert state.keys() == before.keys()
        assert all(state[k] is before[k] for k in before)
        assert result.shape == shape
        assert result.dtype == np.float64
        slots = {k: v for k, v in new_state.items() if isinstance(v, np.ndarray)}
        assert all(
            np.broadcast_shapes(v.shape, shape) == shape and v.dtype == np.float64
            for v in slots.values()
        )
        state = {**new_state, **{k: frozen(v) for k, v in slots.items()}}  # a write would raise


def test_transformations_change_nothing():
    g, p = frozen([3.0, 4.0]), frozen([1.0, 1.0])
    for result in (
        ref.clip_by_global_norm([g], 1.0)[0],
        ref.clip_by_global_norm([g], 9.0)[0],
        ref.clip_by_value(g, 1.0),
        ref.add_decayed_weights(g, p, weight_decay=0.1),
        ref.params_ema(p, g, 1, decay=0.0),
    ):
        assert not np.shares_memory(result, g)
        assert not np.shares_memory(result, p)


def test_the_package_imports_numpy_and_the_standard_library_alone():
    files = sorted(Path(ref.__file__).parent.glob("**/*.py"))
    assert len(files) >= 4
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                assert not isinstance(node, ast.ImportFrom) or node.level == 1, file
                continue
            roots = {name.partition(".")[0] for name in names}
            assert roots <= {"numpy"} | sys.stdlib_module_names, file


def test_public_names_are_sorted_documented_functions():
    assert ref.__all__ == sorted(ref.__all__)
    for name in ref.__all__:
        function = getattr(ref, name)
        parameters = inspect.signature(function).parameters
        page = inspect.getdoc(function)
        assert "\nReturns:\n" in page, name
        for parameter in parameters:
            assert f"\n    {parameter}: " in page, f"{name}: {parameter}"


# Optax, in float64, where it has the same rule

SAME_DIRECTIONS = {
    "momentum": (ref.scale_by_momentum, {"momentum": 0.9}, lambda: optax.trace(0.9)),
    "nesterov": (
        ref.scale_by_momentum,
        {"momentum": 0.9, "nesterov": True},
        lambda: optax.trace(0.9, nesterov=True),
    ),
    "adagrad": (  # Optax adds eps inside the root: without it, the two are one
        ref.scale_by_adagrad,
        {"eps": 0.0, "initial_accumulator_value": 0.1},
        lambda: optax.scale_by_rss(0.1, eps=0.0),
    ),
    "rmsprop": (
        ref.scale_by_rmsprop,
        {"decay": 0.9, "initial_scale": 0.5},
        lambda: optax.scale_by_rms(0.9, initial_scale=0.5, eps_in_sqrt=False),
    ),
    "rmsprop-eps-in-sqrt": (
        ref.scale_by_rmsprop,
        {"decay": 0.9, "eps_in_sqrt": True},
        lambda: optax.scale_by_rms(0.9),
    ),
    "rmsprop-centered": (
        ref.scale_by_rmsprop,
        {"decay": 0.9, "centered": True},
        lambda: optax.scale_by_stddev(0.9, eps_in_sqrt=False),
    ),
    "rmsprop-centered-eps-in-sqrt": (
        ref.scale_by_rmsprop,
        {"decay": 0.9, "centered": True, "eps_in_sqrt": True},
        lambda: optax.scale_by_stddev(0.9),
    ),
    "adam": (ref.scale_by_adam, {}, optax.scale_by_adam),
    "adam-eps-root": (
        ref.scale_by_adam,
        {"b1": 0.8, "b2": 0.99, "eps_root": 1e-3},
        lambda: optax.scale_by_adam(0.8, 0.99, eps_root=1e-3),
    ),
    "nadam": (ref.scale_by_adam, {"nesterov": True}, lambda: optax.scale_by_adam(nesterov=True)),
    "amsgrad": (
        ref.scale_by_adam,
        {"amsgrad": True, "b2": 0.9},
        lambda: optax.scale_by_amsgrad(b2=0.9),
    ),
}
SAME_OPTIMIZERS = {
    "sgd": (ref.sgd, {}, optax.sgd),
    "sgd-nesterov": (
        ref.sgd,
        {"momentum": 0.9, "nesterov": True},
        lambda rate: optax.sgd(rate, 0.9, nesterov=True),
    ),
    "adagrad": (
        ref.adagrad,
        {"eps": 0.0, "initial_accumulator_value": 0.1},
        lambda rate: optax.adagrad(rate, eps=0.0),
    ),
    "rmsprop-momentum": (  # Optax has the rate inside the buffer: the same while it is constant
        ref.rmsprop,
        {"momentum": 0.9, "nesterov": True},
        lambda rate: optax.rmsprop(rate, momentum=0.9, nesterov=True, eps_in_sqrt=False),
    ),
    "adam": (ref.adam, {}, optax.adam),
    "amsgrad": (ref.adam, {"amsgrad": True}, optax.amsgrad),
    "adamw": (
        ref.adamw,
        {"weight_decay": 0.1},
        lambda rate: optax.adamw(rate, weight_decay=0.1),
    ),
    "nadamw": (
        ref.adamw,
        {"nesterov": True, "weight_decay": 0.1},
        lambda rate: optax.nadamw(rate, weight_decay=0.1),
    ),
}


def gradients_of_all_sizes(num_updates):
    rng = np.random.default_rng(4)
    return rng.normal(size=(num_updates, 6)) * 10.0 ** np.arange(-3, 3)


@pytest.mark.parametrize("case", SAME_DIRECTIONS)
def test_directions_agree_with_optax(case):
    rule, options, make = SAME_DIRECTIONS[case]
    gradients = gradients_of_all_sizes(50)
    directions, _ = run(rule, gradients, **options)
    with jax.enable_x64(True):
        theirs = make()
        state = theirs.init(jnp.zeros(6))
        _, expected = jax.lax.scan(
            lambda s, g: theirs.update(g, s)[::-1], state, jnp.asarray(gradients)
        )
        assert expected.dtype == jnp.float64
        np.testing.assert_allclose(directions, expected, rtol=1e-12)


@pytest.mark.parametrize("case", SAME_OPTIMIZERS)
def test_optimizers_agree_with_optax(case):
    optimizer, options, make = SAME_OPTIMIZERS[case]
    gradients, p = gradients_of_all_sizes(50), np.linspace(-2, 2, 6)
    path = walk(optimizer, p, gradients, learning_rate=0.01, **options)
    with jax.enable_x64(True):
        theirs = make(0.01)

        def update(carry, g):
            params, state = carry
            updates, state = theirs.update(g, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        start = (jnp.asarray(p), theirs.init(jnp.asarray(p)))
        _, expected = jax.lax.scan(update, start, jnp.asarray(gradients))
        assert expected.dtype == jnp.float64
        np.testing.assert_allclose(path, expected, rtol=1e-12, atol=1e-12)


def test_transformations_agree_with_optax():
    rng = np.random.default_rng(5)
    arrays = [rng.normal(size=(3, 4)), rng.normal(size=5) * 30]
    with jax.enable_x64(True):
        theirs = [jnp.asarray(a) for a in arrays]
        np.testing.assert_allclose(ref.global_norm(arrays), optax.tree.norm(theirs), rtol=1e-14)
        for limit in (0.5, 1e3):
            expected, _ = optax.clip_by_global_norm(limit).update(theirs, optax.EmptyState())
            for ours, other in zip(ref.clip_by_global_norm(arrays, limit), expected, strict=True):
                np.testing.assert_allclose(ours, other, rtol=1e-14)
            expected, _ = optax.clip(limit).update(theirs, optax.EmptyState())
            np.testing.assert_array_equal(ref.clip_by_value(arrays[1], limit), expected[1])
        np.testing.assert_allclose(
            ref.params_ema(arrays[1], arrays[0][0, 0], 3, decay=0.9),
            optax.incremental_update(theirs[1], theirs[0][0, 0] * jnp.ones(5), 0.1),
            rtol=1e-14,
        )


@pytest.mark.parametrize(
    ("ours", "options", "make"),
    [
        (
            ref.linear,
            {"init_value": 0.3, "end_value": 0.1, "transition_steps": 30},
            lambda: optax.linear_schedule(0.3, 0.1, 30),
        ),
        (
            ref.cosine,
            {"init_value": 0.5, "decay_steps": 30, "end_value": 0.1},
            lambda: optax.cosine_decay_schedule(0.5, 30, alpha=0.2),
        ),
        (
            ref.warmup_cosine,
            {
                "init_value": 0.1,
                "peak_value": 0.5,
                "warmup_steps": 7,
                "decay_steps": 30,
                "end_value": 0.2,
            },
            lambda: optax.warmup_cosine_decay_schedule(0.1, 0.5, 7, 30, end_value=0.2),
        ),
    ],
    ids=["linear", "cosine", "warmup_cosine"],
)
def test_schedules_agree_with_optax(ours, options, make):
    with jax.enable_x64(True):
        expected = jax.vmap(make())(jnp.arange(50))
        assert expected.dtype == jnp.float64
        np.testing.assert_allclose([ours(t, **options) for t in range(50)], expected, rtol=1e-12)
