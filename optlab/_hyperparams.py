"""Hyperparameters: fixed, scheduled, traced or replaced in the state, on one code path.

The values in force live in the state, so they can be read there and, where they are not scheduled,
replaced. Which value counts is settled by one rule, *the last change wins*: the state's value is
used until the argument given to the constructor differs from the one seen at the update before
(as when Optax's `inject_hyperparams` or a sweep builds the transformation anew in every step).

A decay rate β comes with what float32 would lose (see `Decay`):

- where β is a Python number, 1 − β formed in float64, and what rounding took from β itself. An
  average with β = float32(0.999) and any 1 − β settles 1.3e-5 too high or forgets too slowly;
- the bias correction 1/(1 − Πβᵢ) = −1/expm1(Σ log βᵢ), the product over the updates made so far,
  whether β is constant or scheduled. The sum is carried as an unevaluated pair of numbers, so that
  it stays good to 4e-7 over any number of updates (1 − βᵗ in float32 errs by 2e-5 for 0.999).
  PyTorch and Optax take the power βᵗ of the present β, which is another number where β changes;
  their dialects ask for that.
"""

import math
from collections import namedtuple
from collections.abc import Mapping
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
        given: (k,) float; each constructor argument as last seen, in the order of the sorted names;
            NaN for a schedule.
        log_products: one (2,) float array for each decay rate whose average is freed of its bias:
            Σ log β over the updates made so far, as a high and a low part.
    """

    given: Array
    log_products: tuple[Array, ...]


class Decay(NamedTuple):
    """A decay rate in force, as a rule sees it: scalars of the type that is computed in."""

    value: Array
    residue: Array  # β − value: what rounding took
    complement: Array  # 1 − β
    is_short: Array  # β < ½
    weight: Array  # 1 − β, or −β where it is short; see `average`
    correction: Array | None = None  # 1/(1 − Πβ) or 1/(1 − βᵗ), where asked for


class Parameter(NamedTuple):
    """How one hyperparameter was declared by its rule."""

    value: Hyperparam
    domain: _checks.Domain
    is_decay: bool = False
    bias_corrected: bool = False
    by_power: bool = False

    @property
    def has_product(self) -> bool:
        return self.bias_corrected and not self.by_power


def number(value: Hyperparam, domain: _checks.Domain = _checks.NONNEGATIVE) -> Parameter:
    """Declare a plain number."""
    return Parameter(value, domain)


def decay(value: Hyperparam, *, bias_corrected: bool = False, by_power: bool = False) -> Parameter:
    """Declare a decay rate in [0, 1), which a rule sees as a `Decay`.

    Args:
        value: β.
        bias_corrected: whether the rule needs the correction of an average's bias.
        by_power: whether that is 1 − βᵗ with the present β, instead of 1 − Πβ.
    """
    return Parameter(value, _checks.DECAY, True, bias_corrected, by_power)


class Hyperparams:
    """The hyperparameters of one rule, checked, with the state that keeps them alive.

    Args:
        who: the public name that errors begin with.
        **parameters: the declarations, made with `number` and `decay`.

    Raises:
        ValueError: a concrete value is outside its domain, or not a real scalar.
    """

    def __init__(self, who: str, **parameters: Parameter):
        for name, parameter in parameters.items():
            if not callable(parameter.value):
                _checks.check_number(
                    who,
                    name,
                    parameter.value,
                    parameter.domain,
                    kinds="a number, a scalar array or a schedule",
                    dtype=_dtype(),
                )
        self.who = who
        self.parameters = parameters
        self._in_force = namedtuple("Hyperparams", parameters)

    def init(self) -> tuple[dict[str, Array], Memory]:
        """Return the values for the first update, and the memory before it."""
        given = {name: self._given(name) for name in self.parameters}
        values = {
            name: self._scheduled(name, 0) if callable(parameter.value) else given[name]
            for name, parameter in self.parameters.items()
        }
        products = tuple(
            jnp.zeros((2,), _dtype()) for p in self.parameters.values() if p.has_product
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
        seen_before = dict(zip(sorted(self.parameters), memory.given, strict=True))
        for name, parameter in self.parameters.items():
            given = self._given(name)
            if callable(parameter.value):
                value = self._scheduled(name, count)
            else:
                # Only a value that was replaced comes from the state, so that gradients flow to an
                # argument that was not.
                replaced = (seen_before[name] == given) & (values[name] != given)
                value = jnp.where(replaced, values[name], given)
            new_values[name], new_given[name] = value, given
            if not parameter.is_decay:
                seen[name] = value
                continue
            beta, log = _decay(parameter.value, value)
            if parameter.has_product:
                product = _add(next(products), log)
                new_products.append(product)
                beta = beta._replace(correction=-1 / jnp.expm1(product[0]))
            elif parameter.bias_corrected:
                t = count.astype(value.dtype) + 1
                beta = beta._replace(correction=-1 / jnp.expm1(t * log[0] + t * log[1]))
            seen[name] = beta
        return self._in_force(**seen), new_values, Memory(_stack(new_given), tuple(new_products))

    def _given(self, name: str) -> Array:
        """Return the constructor's argument as a scalar of its own; NaN for a schedule."""
        value = self.parameters[name].value
        # A copy, so that donating the state never gives away an array of the caller's.
        return jnp.array(np.nan if callable(value) else value, _dtype(), copy=True)

    def _scheduled(self, name: str, count: Array | int) -> Array:
        value = self.parameters[name].value(count)
        _checks.check_number(self.who, f"the value of {name}'s schedule", value, _checks.ANY)
        return jnp.array(value, _dtype(), copy=True)


def _dtype() -> jnp.dtype:
    """Return the type hyperparameters are kept in: float32, or float64 where x64 is enabled."""
    return jax.dtypes.canonicalize_dtype(jnp.float64)


def _stack(given: Mapping[str, Array]) -> Array:
    ordered = [given[name] for name in sorted(given)]
    return jnp.stack(ordered) if ordered else jnp.zeros((0,), _dtype())


def _decay(argument: Hyperparam, value: Array) -> tuple[Decay, tuple[Array, Array]]:
    """Return β in force, and log β as a (high, low) pair."""
    log = jnp.maximum(jnp.log1p(-(1 - value)), _LOG_OF_ZERO).astype(value.dtype)
    zero = jnp.zeros_like(value)
    parts = (zero, 1 - value, log, zero)
    if isinstance(argument, int | float | np.number):
        # β is known beyond the type's digits, as long as nobody has replaced it in the state.
        beta = float(argument)
        log_beta = math.log(beta) if beta > 0 else _LOG_OF_ZERO
        nearest, residue = _split(beta, value.dtype)
        exact = (residue, 1 - beta, *_split(log_beta, value.dtype))
        unreplaced = value == nearest
        parts = (
            jnp.where(unreplaced, np.asarray(x, value.dtype), y)
            for x, y in zip(exact, parts, strict=True)
        )
    residue, complement, high, low = parts
    is_short = value < 0.5
    weight = jnp.where(is_short, -value, complement)
    return Decay(value, residue, complement, is_short, weight), (high, low)


def _split(number: float, dtype: jnp.dtype) -> tuple[np.ndarray, float]:
    """Return a number rounded to a type, and what rounding took."""
    high = np.asarray(number, dtype)
    return high, number - float(high)


def _add(total: Array, term: tuple[Array, Array]) -> Array:
    """Add two unevaluated sums (high + low), keeping the rounding error in the low part."""
    high = total[0] + term[0]
    part = high - total[0]
    error = (total[0] - (high - part)) + (term[0] - part)
    low = total[1] + term[1] + error
    normalized = high + low
    return jnp.stack([normalized, low - (normalized - high)])
