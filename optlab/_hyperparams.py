"""Hyperparameters: fixed, scheduled, traced or replaced in the state, on one code path.

The values in force live in the state, so they can be read there and, where they are not scheduled,
replaced. Which value counts is settled by one rule, *the last change wins*: the state's value is
used until the argument given to the constructor differs from the one seen at the update before
(as when Optax's `inject_hyperparams` or a sweep builds the transformation anew in every step).

A decay rate β comes with what float32 would lose:

- 1 − β, formed in float64 where β is a Python number: float32 loses 3e-5 of 1 − 0.999;
- the bias correction 1 − Πβᵢ = −expm1(Σ log βᵢ), the product over the updates made so far, whether
  β is constant or scheduled. The sum is carried as an unevaluated pair of numbers, so that it
  stays good to about 1e-7 over any number of updates (1 − βᵗ in float32 errs by 2e-5 for 0.999).
"""

import math
from collections import namedtuple
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._types import Array, Hyperparam

# log 0 would make the running sum NaN; this is as good, since exp of it is 0 in float64 too.
_LOG_OF_ZERO = -1000.0


class Memory(NamedTuple):
    """What a rule remembers about its hyperparameters between updates.

    Attributes:
        given: (k,) float; each constructor argument as last seen, in order; NaN for a schedule.
        log_products: one (2,) float array for each decay rate whose average is freed of its bias:
            Σ log β over the updates made so far, as a high and a low part.
    """

    given: Array
    log_products: tuple[Array, ...]


class Decay(NamedTuple):
    """A decay rate in force, as a rule sees it: scalars of the type that is computed in."""

    value: Array
    complement: Array  # 1 − β
    correction: Array | None = None  # 1 − Πβ, where asked for


class Parameter(NamedTuple):
    """How one hyperparameter was declared by its rule."""

    value: Hyperparam
    domain: _checks.Domain
    is_decay: bool = False
    bias_corrected: bool = False


def number(value: Hyperparam, domain: _checks.Domain = _checks.NONNEGATIVE) -> Parameter:
    """Declare a plain number."""
    return Parameter(value, domain)


def decay(value: Hyperparam, *, bias_corrected: bool = False) -> Parameter:
    """Declare a decay rate in [0, 1), which a rule sees as a `Decay`."""
    return Parameter(value, _checks.DECAY, is_decay=True, bias_corrected=bias_corrected)


def average(beta: Decay, old: Array, new: Array) -> Array:
    """Return the exponential moving average β·old + (1 − β)·new."""
    return beta.value * old + beta.complement * new


@dataclass(frozen=True, init=False)
class Hyperparams:
    """The hyperparameters of one rule, checked, with the state that keeps them alive.

    Args:
        who: the public name that errors begin with.
        **parameters: the declarations, made with `number` and `decay`.

    Raises:
        ValueError: a concrete value is outside its domain, or not a real scalar.
    """

    who: str
    parameters: Mapping[str, Parameter]
    in_force: type

    def __init__(self, who: str, **parameters: Parameter):
        for name, parameter in parameters.items():
            if not callable(parameter.value):
                _checks.check_number(who, name, parameter.value, parameter.domain)
        object.__setattr__(self, "who", who)
        object.__setattr__(self, "parameters", parameters)
        object.__setattr__(self, "in_force", namedtuple("Hyperparams", parameters))

    def init(self) -> tuple[dict[str, Array], Memory]:
        """Return the values for the first update, and the memory before it."""
        given = {name: self._given(name) for name in self.parameters}
        values = {
            name: self._scheduled(name, 0) if callable(parameter.value) else given[name]
            for name, parameter in self.parameters.items()
        }
        products = tuple(
            jnp.zeros((2,), _dtype()) for p in self.parameters.values() if p.bias_corrected
        )
        return values, Memory(_stack(given), products)

    def step(
        self, count: Array, values: Mapping[str, Array], memory: Memory
    ) -> tuple[Any, dict[str, Array], Memory]:
        """Settle the values of one update.

        Args:
            count: () int32; the updates made before this one.
            values: the values in the state.
            memory: the memory in the state.

        Returns:
            The hyperparameters as the rule sees them (a NamedTuple in the order of declaration),
            and the values and the memory for the new state.
        """
        products = iter(memory.log_products)
        seen, new_values, new_given, new_products = {}, {}, {}, []
        for index, (name, parameter) in enumerate(self.parameters.items()):
            given = self._given(name)
            if callable(parameter.value):
                value = self._scheduled(name, count)
            else:
                value = jnp.where(memory.given[index] == given, values[name], given)
            new_values[name], new_given[name] = value, given
            if not parameter.is_decay:
                seen[name] = value
                continue
            complement, log = _complement_and_log(parameter.value, value)
            correction = None
            if parameter.bias_corrected:
                product = _add(next(products), log)
                new_products.append(product)
                correction = -jnp.expm1(product[0])
            seen[name] = Decay(value, complement, correction)
        return self.in_force(**seen), new_values, Memory(_stack(new_given), tuple(new_products))

    def _given(self, name: str) -> Array:
        """Return the constructor's argument as a scalar of its own; NaN for a schedule."""
        value = self.parameters[name].value
        # A copy, so that donating the state never gives away an array of the caller's.
        return jnp.array(np.nan if callable(value) else value, _dtype(), copy=True)

    def _scheduled(self, name: str, count: Array | int) -> Array:
        value = jnp.array(self.parameters[name].value(count), _dtype(), copy=True)
        if value.ndim:
            _checks.fail(
                self.who, f"the schedule of {name} must return a scalar", f"shape {value.shape}"
            )
        return value


def _dtype() -> jnp.dtype:
    """Return the type hyperparameters are kept in: float32, or float64 where x64 is enabled."""
    return jax.dtypes.canonicalize_dtype(jnp.float64)


def _stack(given: Mapping[str, Array]) -> Array:
    return jnp.stack(list(given.values()))


def _complement_and_log(argument: Hyperparam, value: Array) -> tuple[Array, tuple[Array, Array]]:
    """Return 1 − β and log β as a (high, low) pair; from float64 where β is a Python number."""
    complement = 1 - value  # exact in floating point for β ≥ ½, but β itself may be rounded
    log = jnp.maximum(jnp.log1p(-complement), _LOG_OF_ZERO).astype(value.dtype)
    pair = log, jnp.zeros_like(log)
    if not isinstance(argument, (int, float, np.number)):
        return complement, pair
    beta = float(argument)
    exact = math.log(beta) if beta > 0 else _LOG_OF_ZERO
    high = np.asarray(exact, value.dtype)
    low = np.asarray(exact - float(high), value.dtype)
    unreplaced = value == np.asarray(beta, value.dtype)
    complement = jnp.where(unreplaced, np.asarray(1 - beta, value.dtype), complement)
    return complement, (jnp.where(unreplaced, high, pair[0]), jnp.where(unreplaced, low, pair[1]))


def _add(total: Array, term: tuple[Array, Array]) -> Array:
    """Add two unevaluated sums (high + low), keeping the rounding error in the low part."""
    high = total[0] + term[0]
    part = high - total[0]
    error = (total[0] - (high - part)) + (term[0] - part)
    low = total[1] + term[1] + error
    normalized = high + low
    return jnp.stack([normalized, low - (normalized - high)])
