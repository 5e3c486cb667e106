"""Mistakes that rows cannot hold, and what people are told about them."""

import jax
import jax.numpy as jnp
import pytest

import optlab

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
            lambda: optlab.global_norm({"n": jnp.ones(2, int)}),
            "global_norm: leaves must be floating",
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
            "adam: the state must have been made with the same options, got no nu_max",
        ),
        (
            lambda: optlab.adam(0.1).update(PARAMS, PARAMS),
            "adam: update must be given the state that init returned, a tuple of 2, got dict",
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
