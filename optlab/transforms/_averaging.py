"""Averages of the parameters, to evaluate and to keep in place of the last ones.

    exponential   θ_avg ← a θ_avg + (1 − a) θ
    uniform       θ_avg ← θ_avg + (θ − θ_avg)/n
    latest        θ_avg = the mean of the last k parameters taken

θ are the parameters *after* the update, a is `decay`, n counts the parameters averaged, these
included. θ_avg starts as a copy of the parameters.

With a warm-up the decay of update t is smaller at first, so that the random initialization is
forgotten at once rather than over 1/(1 − a) updates; in all that have a name the first update's
average is the parameters themselves:

    warmup_power p       min(a, 1 − t^(−p))
    "timm"               min(a, 1 − t^(−2/3))
    "diffusers"          min(a, t/(t + 9)) from t = 2 on

p = 2/3 reaches 0.999 at update 31,623, p = 3/4 at 10,000, "diffusers" at 8,991.

Uniform averages of all parameters are those of Polyak and Ruppert, of the last part of a run those
of stochastic weight averaging (SWA), of a few late ones those of LAWA.

Reference: Polyak & Juditsky, SIAM J. Control Optim. 30 (1992); Izmailov et al., UAI (2018) for SWA;
Kaddour, arXiv:2209.14981 (2022) for LAWA.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from optlab import _checks
from optlab._tree import compute_dtype
from optlab._types import Array, ArrayLike, Hyperparam
from optlab.rules import Rule, lift
from optlab.rules import decay as decay_rate

Share = Callable[[Array], Array]
"""The share 1 − a of the new parameters: (number of the update, from 1, int32) → share."""


def params_ema(
    decay: Hyperparam,
    *,
    warmup_power: float | None = None,
    warmup: str | Callable[[Array], ArrayLike] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Keep an exponential moving average of the parameters; the updates pass through unchanged.

    It must stand last in a chain, where the updates are what will be added to the parameters. Read
    the average with `averaged_params`, before the first update the parameters given to `init`.

    Args:
        decay: a in [0, 1), typically 0.999: an average over about 1/(1 − a) updates.
        warmup_power: p > 0 to let the decay of update t be min(a, 1 − t^(−p)); None for a constant.
        warmup: what else bounds the decay at first, in place of `warmup_power`: "timm" or
            "diffusers", as ModelEmaV3 and EMAModel do; or a function of the number of the update,
            from 1, that returns a decay, so that min(a, warmup(t)) is used; what it returns is
            clipped to [0, 1], and NaN stays NaN.

    Returns:
        A transformation whose state holds `average`, in at least float32; its `update` needs the
        parameters.

    Raises:
        ValueError: a hyperparameter is out of its range, or two warm-ups are given; at update, the
            parameters are missing.

    Example:
        >>> import jax.numpy as jnp, optax, optlab
        >>> tx = optax.chain(optlab.sgd(1.0), optlab.params_ema(0.5))
        >>> params = jnp.array(1.0)
        >>> state = tx.init(params)
        >>> updates, state = tx.update(jnp.array(0.5), state, params)
        >>> print(params + updates, optlab.averaged_params(state))
        0.5 0.75

    Reference:
        Polyak & Juditsky (1992).
    """
    who = "params_ema"
    share_at_first = _warmup(who, warmup_power, warmup)

    def share_of_new(h, t):
        if share_at_first is None:
            return h.decay.complement
        return jnp.maximum(h.decay.complement, share_at_first(t))

    def leaf(u, slots, share, new_param):
        return u, (toward(new_param, slots.average, share, 1 - share),)

    rule = Rule(
        who,
        leaf,
        hyperparams={"decay": decay_rate(decay)},
        slots={"average": copy_of_param},
        once=share_of_new,
        needs_params=True,
        after_update=True,
        counter="step",
    )
    return lift(rule)


def params_average(start: int = 0, every: int = 1) -> optax.GradientTransformationExtraArgs:
    """Keep the plain mean of the parameters after some updates; the updates pass through unchanged.

    All parameters count alike: those after the updates start + 1, start + 1 + every, … It is Polyak
    averaging from `start` 0, and stochastic weight averaging (SWA) from a late start on, at a
    learning rate that stays high (`schedules.swa_schedule`). It must stand last in a chain. Read
    the average with `averaged_params`. Each update rounds it once: of a million parameters, the
    mean in float32 is right to 4e-5.

    Args:
        start: updates before the first whose parameters are averaged, ≥ 0; for SWA about three
            quarters of the run.
        every: updates from one average to the next, ≥ 1; for SWA an epoch.

    Returns:
        A transformation whose state holds `average`, in at least float32 and at first the
        parameters given to `init`, and `num_averaged`, the number n of those averaged. Its
        `update` needs the parameters.

    Raises:
        ValueError: an argument is out of its range; at update, the parameters are missing.

    Example:
        >>> import jax.numpy as jnp, optax, optlab
        >>> tx = optax.chain(optlab.sgd(1.0), optlab.params_average(start=1))
        >>> params = jnp.array(10.0)
        >>> state = tx.init(params)
        >>> for _ in range(3):  # to 9, 8, 7
        ...     updates, state = tx.update(jnp.array(1.0), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(optlab.averaged_params(state))
        7.5

    Reference:
        Polyak & Juditsky (1992); Izmailov et al. (2018).
    """
    who = "params_average"
    start = _checks.check_count(who, "start", start, 0)
    every = _checks.check_count(who, "every", every, 1)

    def is_due(state, h, extra_args):
        due = (state.step >= start) & ((state.step - start) % every == 0)
        before = jnp.asarray(state.num_averaged)
        number = jnp.where(due, optax.safe_increment(before), before)
        return state._replace(num_averaged=number), (due, number)

    def leaf(u, slots, scalars, new_param):
        due, number = scalars
        share = 1 / jnp.maximum(number, 1)
        average = toward(new_param, slots.average, share, 1 - share)
        return u, (jnp.where(due, average, slots.average),)

    rule = Rule(
        who,
        leaf,
        slots={"average": copy_of_param},
        fields={"num_averaged": _zero},
        observe=is_due,
        needs_params=True,
        after_update=True,
        counter="step",
    )
    return lift(rule)


def params_lawa(k: int = 6, *, every: int) -> optax.GradientTransformationExtraArgs:
    """Keep the latest k of the parameters, one every so many updates; their mean is the average.

    The parameters after the updates every, 2·every, … are taken, and replace those that were taken
    k times before. The updates pass through unchanged. It must stand last in a chain. Read the mean
    with `averaged_params`. The state needs k times the memory of the parameters.

    Args:
        k: how many of the parameters are kept, ≥ 1.
        every: updates from one to the next, ≥ 1; in the paper an epoch.

    Returns:
        A transformation whose state holds `recent`, arrays of the shape (k, *shape of the
        parameter) in at least float32, `filled`, how many of the k have been taken, and `place`,
        where the next one goes. Its `update` needs the parameters.

    Raises:
        ValueError: an argument is out of its range; at update, the parameters are missing.

    Example:
        >>> import jax.numpy as jnp, optax, optlab
        >>> tx = optax.chain(optlab.sgd(1.0), optlab.params_lawa(k=2, every=1))
        >>> params = jnp.array(10.0)
        >>> state = tx.init(params)
        >>> for _ in range(3):  # to 9, 8, 7
        ...     updates, state = tx.update(jnp.array(1.0), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(optlab.averaged_params(state))
        7.5

    Reference:
        Kaddour, arXiv:2209.14981 (2022).
    """
    who = "params_lawa"
    k = _checks.check_count(who, "k", k, 1)
    every = _checks.check_count(who, "every", every, 1)

    def is_due(state, h, extra_args):
        due = jnp.asarray(optax.safe_increment(state.step)) % every == 0
        place, filled = jnp.asarray(state.place), jnp.asarray(state.filled)
        state = state._replace(
            place=jnp.where(due, (place + 1) % k, place),
            filled=jnp.where(due, jnp.minimum(filled, k - 1) + 1, filled),
        )
        return state, (due, place)

    def leaf(u, slots, scalars, new_param):
        due, place = scalars
        place = place.astype(jnp.int32)  # numbers arrive in the type of the arithmetic
        # One of the k is written, so that an update does not go through the memory of them all.
        old = jax.lax.dynamic_index_in_dim(slots.recent, place, keepdims=False)
        new = jnp.where(due, new_param, old)
        return u, (jax.lax.dynamic_update_index_in_dim(slots.recent, new, place, 0),)

    rule = Rule(
        who,
        leaf,
        slots={"recent": lambda param: _copies(param, k)},
        fields={"place": _zero, "filled": _zero},
        observe=is_due,
        needs_params=True,
        after_update=True,
        counter="step",
    )
    return lift(rule)


def toward(new: Array, average: Array, share: Array, rest: Array) -> Array:
    """Return share·new + rest·average, where the two sum to 1.

    It is formed from the nearer end, by the smaller of the two. So a share of 1 gives `new` to the
    last bit, and a small rest may be given with more digits than 1 − share has.
    """
    distance = new - average
    return jnp.where(share > 0.5, new - rest * distance, average + share * distance)


def copy_of_param(param: Any) -> Any:
    """Return a parameter in at least float32; of a description, a description."""
    dtype = compute_dtype(param.dtype)
    if isinstance(param, jax.ShapeDtypeStruct):  # a description has no values to copy
        return jax.ShapeDtypeStruct(param.shape, dtype, sharding=param.sharding)
    # A buffer of its own, so that parameters and state can be donated together.
    return jnp.array(param, dtype, copy=True)


def _copies(param: Any, k: int) -> Any:
    """Return k copies of a parameter along a new first axis."""
    one = copy_of_param(param)
    if not isinstance(one, jax.ShapeDtypeStruct):
        return jnp.stack([one] * k)
    sharding = one.sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
    return jax.ShapeDtypeStruct((k, *one.shape), one.dtype, sharding=sharding)


def _zero() -> Array:
    return jnp.zeros((), jnp.int32)


def _warmup(
    who: str, power: float | None, warmup: str | Callable[[Array], ArrayLike] | None
) -> Share | None:
    """Return the least share of the new parameters in the first updates; None for no warm-up."""
    if power is not None:
        if warmup is not None:
            _checks.fail(who, "one of warmup_power and warmup must be given", "both")
        return _power(_checks.check_number(who, "warmup_power", power, _checks.POSITIVE))
    if warmup is None:
        return None
    if isinstance(warmup, str) and warmup in _WARMUPS:
        return _WARMUPS[warmup]
    if not callable(warmup):
        choices = ", ".join(map(repr, _WARMUPS))
        _checks.fail(who, f"warmup must be {choices} or a function", f"warmup={warmup!r}")
    _checks.check_number(who, "the value of warmup", warmup(jnp.int32(1)), _checks.UNIT)
    # Outside of [0, 1] the average would run past the parameters, and grow without bound.
    return lambda t: 1 - jnp.clip(jnp.asarray(warmup(t), float), 0, 1)


def _power(power: float) -> Share:
    return lambda t: t.astype(float) ** -power


_WARMUPS: dict[str, Share] = {
    "timm": _power(2 / 3),
    "diffusers": lambda t: jnp.where(t == 1, 1, 9 / (t.astype(float) + 9)),
}
"""The shares 1 − a of named warm-ups, formed without a difference."""
