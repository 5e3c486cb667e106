"""Mistakes that rows cannot hold, and what people are told about them."""

import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab import _checks

PARAMS = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: optlab.sgd(1e300), "sgd: learning_rate must be finite and >= 0 in float32, got"),
        (lambda: optlab.adam(0.1, eps=1e-50), "adam: eps must be finite and >= 0 in float32, got"),
        (lambda: optlab.adam(0.1, b2=1 - 1e-9), r"adam: b2 must be in \[0, 1\) in float32, got"),
        (lambda: optlab.adam("fast"), "adam: learning_rate must be a number, a scalar array or a"),
        (lambda: optlab.adam(jnp.ones(2)), r"adam: learning_rate must be a scalar, got shape \(2,"),
        (lambda: optlab.adam(1j), "adam: learning_rate must be real, got"),
        (lambda: optlab.adam(0.1, mu_dtype="nope"), "adam: mu_dtype must be a floating-point type"),
        (
            lambda: optlab.rmsprop(0.1, initial_scale=lambda t: 1.0),
            "rmsprop: initial_scale must be a number or a scalar array, got",
        ),
        (
            lambda: optlab.sgd(0.1, dampening=lambda t: 0.1),
            "sgd: dampening needs momentum, got momentum=None; pass momentum=0.9, say",
        ),
        (
            lambda: optlab.sgd(lambda t: None).init(PARAMS),
            "sgd: the value of learning_rate's schedule must be a number or a scalar array, got",
        ),
        (
            lambda: optlab.sgd(lambda t: jnp.ones(3)).init(PARAMS),
            "sgd: the value of learning_rate's schedule must be a scalar, got shape",
        ),
        (
            lambda: optlab.adamw(0.1, mask={"w": True}).init(PARAMS),
            r"adamw: gradients and mask must be trees .*\['b'\].*; give the mask as a function",
        ),
        (
            lambda: optlab.adamw(0.1, mask={"w": True, "b": "no"}).init(PARAMS),
            "adamw: mask must hold booleans, got 'no'",
        ),
        (
            lambda: optlab.adam(0.1, amsgrad=True).update(
                PARAMS, optlab.adam(0.1).init(PARAMS), PARAMS
            ),
            r"adam: the state must hold count, mu, nu, nu_max, .* got count, mu, nu, b1, .*options",
        ),
        (
            lambda: optlab.adam(0.1).update(PARAMS, PARAMS),
            r"adam: update must be given the state that init returned, a tuple \(.*\), got dict",
        ),
        (
            lambda: optlab.params_ema(0.9, warmup_power=lambda t: 1.0),
            "params_ema: warmup_power must be a number or a scalar array, got",
        ),
        (
            lambda: optlab.adam(0.1, b2=jnp.bfloat16(0.999)),
            r"adam: b2 must be in \[0, 1\), got b2=1.*; bfloat16 may have rounded it: pass float32",
        ),
    ],
)
def test_the_message_says_who_what_came_and_what_to_do(mistake, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        mistake()


def test_a_traced_number_is_not_looked_at():
    update = jax.jit(lambda rate: optlab.sgd(rate).update(PARAMS, optlab.sgd(rate).init(PARAMS))[0])
    assert float(update(-1.0)["b"][0]) == 1.0


@pytest.mark.parametrize(
    "count",
    [
        50,
        5.0 * 10,
        np.float64(50),
        np.float16(50),
        np.uint8(50),
        np.array(50),
        np.array(50.0),
        jnp.array(50),
        jnp.array(50.0, jnp.bfloat16),
    ],
    ids=repr,
)
def test_a_whole_number_of_any_type_is_a_count(count):
    checked = _checks.check_count("who", "steps", count, 1)
    assert checked == 50
    assert type(checked) is int


@pytest.mark.parametrize(
    "count",
    [0, -1.0, 2.5, float("nan"), float("inf"), True, np.True_, "50", None, 50 + 0j, np.array([50])],
    ids=repr,
)
def test_what_is_no_whole_number_of_updates_is_refused(count):
    with pytest.raises(ValueError, match=r"^who: steps must be an integer >= 1, got steps="):
        _checks.check_count("who", "steps", count, 1)


def test_a_traced_count_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match="pass a Python int"):
        jax.jit(lambda count: _checks.check_count("who", "steps", count, 1))(50)


@pytest.mark.parametrize("count", [2**31, 2.0**31, 10**30])
def test_a_count_beyond_int32_is_refused(count):
    with pytest.raises(ValueError, match=r"^who: steps must be below 2\*\*31"):
        _checks.check_count("who", "steps", count, 1)


@pytest.mark.parametrize("make", [np.array, jnp.array])
def test_an_array_of_one_element_is_the_number_that_it_holds(make):
    checked = _checks.check_number("who", "x", make([0.5]), _checks.DECAY)
    assert np.shape(checked) == ()
    assert checked == 0.5
    traced = jax.jit(lambda x: _checks.check_number("who", "x", x, _checks.DECAY))
    assert traced(make([0.5])).shape == ()
    with pytest.raises(ValueError, match=r"^who: x must be in"):
        _checks.check_number("who", "x", make([1.5]), _checks.DECAY)
    with pytest.raises(ValueError, match=r"^who: x must be a scalar, got shape"):
        _checks.check_number("who", "x", make([0.5, 0.5]), _checks.DECAY)


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (_checks.ANY, [-1, 0, np.inf, -np.inf, np.nan], []),
        (_checks.FINITE, [-1, 0], [np.inf, np.nan]),
        (_checks.NONNEGATIVE, [0, 2], [-1, np.inf, np.nan]),
        (_checks.NONNEGATIVE_OR_INFINITE, [0, 2, np.inf], [-1, -np.inf, np.nan]),
        (_checks.POSITIVE, [2], [-1, 0, np.inf, np.nan]),
        (_checks.DECAY, [0, 0.5], [-1, 1, np.inf, np.nan]),
        (_checks.UNIT, [0, 0.5, 1], [-1, 2, np.nan]),
        (_checks.INSIDE, [0.5], [0, 1, np.nan]),
        (_checks.SHARE, [0.5, 1], [0, 2, np.nan]),
        (_checks.AT_LEAST_ONE, [1, 2], [0.5, np.inf, np.nan]),
        (_checks.ABOVE_ONE, [2], [1, np.inf, np.nan]),
    ],
    ids=lambda value: getattr(value, "description", ""),
)
def test_a_domain_is_a_value_that_knows_its_numbers(domain, inside, outside):
    assert all(domain.contains(number) for number in inside)
    assert not any(domain.contains(number) for number in outside)
    assert hash(pickle.loads(pickle.dumps(domain))) == hash(domain)
    assert pickle.loads(pickle.dumps(domain)) == domain


def test_a_flag_is_true_or_false_and_nothing_else():
    for value in (True, False, np.True_):
        assert type(_checks.check_flag("who", "nesterov", value)) is bool
    for value in ("no", 1, 0.5, None, jnp.array(True)):
        with pytest.raises(ValueError, match=r"^who: nesterov must be True or False, got "):
            _checks.check_flag("who", "nesterov", value)


# True-or-false options


def flags():
    """Yield every public constructor that has a true-or-false option, and the option's name."""
    modules = [optlab, optlab.rules, optlab.schedules, optlab.groups, optlab.lab.tasks]
    dialects = [getattr(optlab.dialects, name) for name in optlab.dialects.__all__]
    modules += filter(inspect.ismodule, dialects)
    for module in modules:
        for name in module.__all__:
            # What a dialect does not have itself is another library's, and may be deprecated there.
            own = module.__name__.startswith("optlab.dialects")
            function = vars(module).get(name) if own else getattr(module, name)
            if not inspect.isfunction(function) or not function.__module__.startswith("optlab"):
                continue
            for option in inspect.signature(function).parameters.values():
                if option.annotation in (bool, "bool") and option.name != "progress":
                    identity = f"{module.__name__}.{name}-{option.name}"
                    yield pytest.param(function, option.name, id=identity)


@pytest.mark.parametrize(("function", "option"), list(flags()))
def test_an_option_is_true_or_false_and_nothing_that_counts_as_one(function, option):
    needed = {
        name: {"tx": optax.sgd(0.1), "schedule": lambda step: 0.1}.get(name, 1e-2)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    for value in ("no", "off", 0, 1, None):
        with pytest.raises(ValueError, match=rf"{option} must be True or False, got {option}="):
            function(**needed, **{option: value})
