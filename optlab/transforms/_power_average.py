"""Averages of the parameters by a power of the update's number, of any width.

    θ_avg ← θ_avg + (1 − (1 − 1/t)^(γ+1)) (θ − θ_avg)

θ are the parameters after update t. The weight of θ_i in the average after update T is
(i^(γ+1) − (i − 1)^(γ+1))/T^(γ+1), about (γ + 1)/T · (i/T)^γ. So the average grows with the run: it
always covers the same share of it, and θ₀ has no part in it. The standard deviation of i/T under
these weights is the relative width,

    σ_rel² = (γ + 1)/((γ + 2)²(γ + 3)),

`sigma_rel`, in (0, 1/√12]. The widest, γ = 0, is the plain mean of all parameters. The share is
formed as −expm1((γ + 1)·log1p(−1/t)) and its rest as the exponential. In float32 the difference
from 1 would be wrong by a fifth at t = 1e7.

Reference: Karras et al., CVPR (2024), EDM2.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from optlab import _checks
from optlab.rules import Rule, lift
from optlab.transforms._averaging import copy_of_param, toward

WIDTH = _checks.Domain("in (0, 1/√12]", 0, 12**-0.5, open_low=True)
"""The relative widths that there are."""

NEAR = 1e-3
"""Widths that differ by less, relative to the larger, are one and the same."""

_DEFAULT = (0.05, 0.10)
_PREFIX = "average_"


def params_power_ema(
    sigma_rel: float | Sequence[float] = _DEFAULT, *, gamma: float | Sequence[float] | None = None
) -> optax.GradientTransformationExtraArgs:
    """Keep averages of the parameters whose widths are shares of the run; updates pass unchanged.

    An average of the relative width 0.05 has 85% of its weight on the last tenth of the run,
    however long that becomes. Of snapshots of two widths `reconstruct` makes the average of any
    other width after the fact. It must stand last in a chain. Read an average with
    `averaged_params`.

    Args:
        sigma_rel: the relative widths, one or several, each in (0, 1/√12 ≈ 0.2887].
        gamma: the exponents γ ≥ 0, in place of `sigma_rel`; 0 is the plain mean.

    Returns:
        A transformation whose state holds for each width a tree of averages in at least float32,
        `average_0_05` for the width 0.05; its `update` needs the parameters.

    Raises:
        ValueError: a width or an exponent is out of its range, two are the same, or both are given;
            at update, the parameters are missing.

    Example:
        >>> import jax.numpy as jnp, optax, optlab
        >>> tx = optax.chain(optlab.sgd(1.0), optlab.params_power_ema((0.1, 0.2)))
        >>> params = jnp.array(10.0)
        >>> state = tx.init(params)
        >>> for _ in range(9):  # to 9, 8, … 1
        ...     updates, state = tx.update(jnp.array(1.0), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> for width in (0.1, 0.2):
        ...     print(f"{optlab.averaged_params(state, width=width):.3f}")
        1.580
        2.878

    Reference:
        Karras et al., CVPR (2024).
    """
    who = "params_power_ema"
    if gamma is None:
        widths = tuple(
            _number(who, "sigma_rel", width, WIDTH) for width in np.atleast_1d(sigma_rel).tolist()
        )
        gammas = tuple(gamma_of(width) for width in widths)
    else:
        if sigma_rel is not _DEFAULT:
            _checks.fail(who, "one of sigma_rel and gamma must be given", "both")
        gammas = tuple(
            _number(who, "gamma", one, _checks.NONNEGATIVE) for one in np.atleast_1d(gamma).tolist()
        )
        widths = tuple(sigma_rel_of(one) for one in gammas)
    _check_different(who, widths)

    def weights(h, t):
        t = t.astype(float)
        # At t = 1 a number whose exponential is 0 stands for the logarithm of 0.
        log = jnp.where(t > 1, jnp.log1p(-1 / jnp.maximum(t, 2)), -1000.0)
        return tuple(
            (-jnp.expm1((gamma + 1) * log), jnp.exp((gamma + 1) * log)) for gamma in gammas
        )

    def leaf(u, slots, weights, new_param):
        pairs = zip(slots, weights, strict=True)
        return u, tuple(toward(new_param, average, *own) for average, own in pairs)

    rule = Rule(
        who,
        leaf,
        slots={_slot_of(width): copy_of_param for width in widths},
        once=weights,
        needs_params=True,
        after_update=True,
        counter="step",
    )
    return lift(rule)


def gamma_of(sigma_rel: float) -> float:
    """Return γ of a relative width: the largest root of γ³ + 7γ² + (16 − σ⁻²)γ + 12 − σ⁻²."""
    s = sigma_rel**-2
    return max(0.0, float(np.roots([1, 7, 16 - s, 12 - s]).real.max()))


def sigma_rel_of(gamma: float) -> float:
    """Return the relative width of an exponent."""
    return min(WIDTH.high, ((gamma + 1) / (gamma + 3)) ** 0.5 / (gamma + 2))


def widths_of(state: Any) -> dict[float, str]:
    """Return the fields of a state of `params_power_ema` that hold averages, by their widths."""
    names = (name for name in state._fields if name.startswith(_PREFIX))
    return {float(name.removeprefix(_PREFIX).replace("_", ".")): name for name in names}


def _slot_of(width: float) -> str:
    """Return the name of the slot for a width, which any checkpoint of the state keeps."""
    return _PREFIX + np.format_float_positional(width).replace(".", "_")


def _number(who: str, name: str, value: Any, domain: _checks.Domain) -> float:
    """Require a number that is known at construction."""
    return float(_checks.check_number(who, name, value, domain))


def _check_different(who: str, widths: Sequence[float]) -> None:
    """Require at least one width, and none twice."""
    ascending = sorted(widths)
    if not widths:
        _checks.fail(who, "there must be at least one width", "none")
    for less, more in pairwise(ascending):
        if more - less < NEAR * more:
            _checks.fail(who, "widths must differ by more than 0.1%", f"{less} and {more}")
