"""Hyperparameters: fixed, scheduled, traced or replaced in the state, on one code path.

The values in force live in the state. There they can be read and, where they are not scheduled,
replaced. The value in the state counts until the constructor's argument changes; then the argument
counts. (An argument changes where Optax's `inject_hyperparams` or a sweep builds the transformation
anew in every step.)

A rule receives a decay rate β as a `Decay`, which holds what float32 would lose:

- 1 − β formed in float64 where β is a Python number, and what rounding took from β. An average with
  β = float32(0.999) and an inexact 1 − β settles 1.3e-5 too high or forgets too slowly.
- the bias correction 1/(1 − Πβᵢ) = −1/expm1(Σ log βᵢ), the product over the updates made so far,
  for a constant and for a scheduled β. The sum is stored as an unevaluated pair of numbers, which
  keeps it good to 4e-7 over any number of updates (1 − βᵗ in float32 errs by 2e-5 for 0.999).
  PyTorch and Optax take the power βᵗ of the present β, which is another number where β changes;
  their dialects declare `by_power`.
"""

import math
from collections import namedtuple
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._types import Array, DTypeLike, Hyperparam
from optlab.rules._state import Declaration

_LOG_OF_ZERO = -1000.0
"""Stands for log 0, which would make the running sum NaN; its exponential is 0 in float64 too."""


class Decay(NamedTuple):
    """A decay rate in force, as a rule sees it: scalars of the type that is computed in.

    Attributes:
        value: β, rounded.
        residue: β − value, which rounding took.
        complement: 1 − β.
        is_short: whether β < ½.
        weight: what `average` multiplies (new − old) by; not for rules.
        correction: 1/(1 − Πβ) or 1/(1 − βᵗ), where the rule declared it.
    """

    value: Array
    residue: Array
    complement: Array
    is_short: Array
    weight: Array
    correction: Array | None = None


class Parameter(NamedTuple):
    """The declaration of one hyperparameter, made with `number` or `decay`."""

    value: Hyperparam
    domain: _checks.Domain
    is_decay: bool = False
    bias_corrected: bool = False
    by_power: bool = False
    idle: int = 0

    @property
    def has_product(self) -> bool:
        """Whether the state holds Σ log β of this decay rate."""
        return self.bias_corrected and not self.by_power


def number(value: Hyperparam, domain: _checks.Domain = _checks.NONNEGATIVE) -> Parameter:
    """Declare a hyperparameter that is a plain number; a rule sees it as a () float array.

    Args:
        value: a number, a scalar array or a schedule.
        domain: the values it may take, such as `rules.NONNEGATIVE` (finite and ≥ 0).
    """
    return Parameter(value, domain)


def decay(
    value: Hyperparam,
    domain: _checks.Domain = _checks.DECAY,
    *,
    bias_corrected: bool = False,
    by_power: bool = False,
    idle: int = 0,
) -> Parameter:
    """Declare a decay rate β, which a rule sees as a `Decay` and passes to `average`.

    Args:
        value: β, a number, a scalar array or a schedule.
        domain: the values it may take; [0, 1) by default.
        bias_corrected: whether the rule needs `Decay.correction`, to free an average of its bias.
        by_power: whether the correction is 1/(1 − βᵗ) with the present β, in place of 1/(1 − Πβ).
        idle: how many updates at the start leave the average alone; Πβ begins after them.
    """
    bias_corrected = _checks.check_flag("decay", "bias_corrected", bias_corrected)
    by_power = _checks.check_flag("decay", "by_power", by_power)
    return Parameter(value, domain, True, bias_corrected, by_power, idle)


class Hyperparams:
    """The hyperparameters of one rule, checked, and how the state stores them.

    The state holds one array of 2k + 2c numbers: the k values in force, the k arguments that the
    constructor had at the last update (the type's lowest number for a schedule), and Σ log β as a
    high and a low part for each of the c decay rates whose average is freed of its bias.

    Args:
        who: the public name that errors begin with.
        parameters: the declarations by name, made with `number` and `decay`.

    Raises:
        ValueError: a concrete value is outside its domain, or not a real scalar.
    """

    def __init__(self, who: str, parameters: Mapping[str, Parameter]):
        self.who = who
        self.parameters = {
            name: parameter
            if callable(parameter.value)
            else parameter._replace(
                value=_checks.check_number(
                    who,
                    name,
                    parameter.value,
                    parameter.domain,
                    kinds="a number, a scalar array or a schedule",
                    dtype=float_dtype(),
                )
            )
            for name, parameter in parameters.items()
        }
        self._packed: dict[Any, Array] = {}
        self.layout = tuple(
            Kind(
                name,
                is_scheduled=callable(parameter.value),
                is_known=parameter.is_decay and _is_number(parameter.value),
                declared=parameter._replace(value=0.0, domain=_checks.ANY),
            )
            for name, parameter in self.parameters.items()
        )

    @property
    def declarations(self) -> tuple[Declaration, ...]:
        """What the state's type says of the hyperparameters."""
        return tuple(
            Declaration(name, parameter.domain, parameter.has_product)
            for name, parameter in self.parameters.items()
        )

    def init(self) -> Array:
        """Return the array for the state before the first update."""
        arguments = [self._argument(name) for name in self.parameters]
        values = [
            self._scheduled(name, 0) if callable(parameter.value) else argument
            for argument, (name, parameter) in zip(arguments, self.parameters.items(), strict=True)
        ]
        products = [parameter.has_product for parameter in self.parameters.values()]
        zeros = [jnp.zeros((), float_dtype())] * (2 * sum(products))
        return jnp.stack([*values, *arguments, *zeros])

    def step(
        self, count: Array, stored: Array | None, joined: Array | int = 0
    ) -> tuple[Any, Array | None]:
        """Settle the values of one update.

        Args:
            count: () int32; the updates that these leaves have had before this one.
            stored: the array in the state; None where the rule has no hyperparameters.
            joined: () int32; the updates made before these leaves joined, which schedules count.

        Returns:
            The hyperparameters as the rule sees them (a NamedTuple in the order of declaration),
            and the array for the new state.
        """
        inputs = () if stored is None else self.inputs(count, joined)
        return settle(self.layout, count, stored, inputs)

    def inputs(self, count: Array, joined: Array | int) -> tuple["Input", ...]:
        """Return what `settle` needs of each hyperparameter; see `Input`."""
        return tuple(
            (self._given(kind, count, joined), *self._exact(kind, float_dtype()))
            for kind in self.layout
        )

    def packed(self, count: Array, joined: Array | int) -> tuple[Array, tuple[Array, ...]]:
        """Return `inputs` in few arrays: Python's numbers in one vector, and the others.

        `unpacked` takes them apart. Each array that is handed to a compiled function costs time.
        """
        dtype = float_dtype()
        if dtype not in self._packed:
            numbers = [
                x
                for kind in self.layout
                if _is_number(self.parameters[kind.name].value)
                for x in (self.parameters[kind.name].value, *self._exact(kind, dtype))
            ]
            with jax.ensure_compile_time_eval():  # a tracer must not be kept
                self._packed[dtype] = jnp.asarray(np.array(numbers, np.float64), dtype)
        others = tuple(
            self._given(kind, count, joined)
            for kind in self.layout
            if not _is_number(self.parameters[kind.name].value)
        )
        return self._packed[dtype], others

    @property
    def packing(self) -> tuple[bool, ...]:
        """Which of the hyperparameters are numbers of Python, as `unpacked` must know."""
        return tuple(_is_number(parameter.value) for parameter in self.parameters.values())

    def _given(self, kind: "Kind", count: Array, joined: Array | int) -> Array:
        """Return the schedule's value, or the constructor's argument."""
        if kind.is_scheduled:
            return self._scheduled(kind.name, count + joined)
        return self._argument(kind.name)

    def _exact(self, kind: "Kind", dtype: DTypeLike) -> tuple[Any, ...]:
        """Return what is known of a decay rate beyond the type's digits; see `Input`."""
        if not kind.is_known:
            return ()
        beta = float(self.parameters[kind.name].value)  # pyright: ignore[reportArgumentType]
        log_beta = math.log(beta) if beta > 0 else _LOG_OF_ZERO
        _, residue = _split(beta, jnp.dtype(dtype))
        exact = (residue, 1 - beta, *_split(log_beta, jnp.dtype(dtype)))
        return tuple(np.asarray(x, dtype) for x in exact)

    def _argument(self, name: str) -> Array:
        """Return the constructor's argument as a scalar of its own."""
        value = self.parameters[name].value
        # A copy, so that donation of the state never takes an array of the caller's.
        dtype = float_dtype()
        return jnp.array(scheduled_mark(dtype) if callable(value) else value, dtype, copy=True)

    def _scheduled(self, name: str, count: Array | int) -> Array:
        schedule = self.parameters[name].value
        assert callable(schedule)
        value = schedule(count)
        what = f"the value of {name}'s schedule"
        value = _checks.check_number(self.who, what, value, _checks.ANY)
        return jnp.array(value, float_dtype(), copy=True)


class Kind(NamedTuple):
    """What `settle` must know of a hyperparameter besides its numbers.

    Attributes:
        name: of the hyperparameter.
        is_scheduled: whether its argument is a schedule.
        is_known: whether it is a decay rate whose argument is a number of Python.
        declared: its declaration, without a value.
    """

    name: str
    is_scheduled: bool
    is_known: bool
    declared: Parameter


Input = tuple[Any, ...]
"""The numbers of one hyperparameter: the schedule's value, or the argument. Behind a number of
Python that is a decay rate β stand β − argument, 1 − β and log β as a (high, low) pair."""

_EXACT = 4
"""How many numbers stand behind the argument of such a decay rate."""


def unpacked(
    layout: tuple[Kind, ...], packing: tuple[bool, ...], vector: Array, others: Sequence[Array]
) -> tuple[Input, ...]:
    """Return the inputs that `Hyperparams.packed` packed."""
    inputs, rest, place = [], iter(others), 0
    for kind, is_number in zip(layout, packing, strict=True):
        if not is_number:
            inputs.append((next(rest),))
            continue
        size = 1 + _EXACT * kind.is_known
        inputs.append(tuple(vector[place + i] for i in range(size)))
        place += size
    return tuple(inputs)


def settle(
    layout: tuple[Kind, ...], count: Array, stored: Array | None, inputs: Sequence[Input]
) -> tuple[Any, Array | None]:
    """Settle the values of one update, as `Hyperparams.step` does, from given inputs."""
    new = named_tuple("Hyperparams", tuple(kind.name for kind in layout))
    if stored is None:
        return new(), None
    size = len(layout)
    numbers = [jax.lax.index_in_dim(stored, i, keepdims=False) for i in range(len(stored))]
    products = iter(zip(numbers[2 * size :: 2], numbers[2 * size + 1 :: 2], strict=True))
    in_force, values, arguments, new_products = {}, [], [], []
    for index, (kind, (argument, *exact)) in enumerate(zip(layout, inputs, strict=True)):
        value, parameter = argument, kind.declared
        if kind.is_scheduled:
            argument = jnp.asarray(scheduled_mark(stored.dtype), stored.dtype)
        else:
            # The state is read only where its value was replaced. Elsewhere the argument
            # itself is used, so that derivatives with respect to it flow.
            old_value, old_argument = numbers[index], numbers[size + index]
            replaced = (old_argument == argument) & (old_value != argument)
            value = jnp.where(replaced, old_value, argument)
        values.append(value)
        arguments.append(argument)
        if not parameter.is_decay:
            in_force[kind.name] = value
            continue
        beta, log = _decay(argument, exact, value)
        if parameter.has_product:
            before = next(products)
            high, low = _add(before, log)
            kept = (high, low)
            if parameter.idle:
                is_idle = count < parameter.idle
                kept = (jnp.where(is_idle, x, y) for x, y in zip(before, kept, strict=True))
            new_products += kept
            beta = beta._replace(correction=_correction(high, value, jnp.exp(before[0])))
        elif parameter.bias_corrected:
            t = count.astype(value.dtype) + 1
            first = jnp.where(count == 0, jnp.ones_like(value), 0)
            beta = beta._replace(correction=_correction(t * log[0] + t * log[1], value, first))
        in_force[kind.name] = beta
    return new(**in_force), jnp.stack([*values, *arguments, *new_products])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


@cache
def named_tuple(name: str, fields: tuple[str, ...]) -> Any:
    """Return the type of a NamedTuple; the same arguments give the same type."""
    return namedtuple(name, fields)


def float_dtype() -> jnp.dtype:
    """Return the type of stored hyperparameters: float32, or float64 where x64 is enabled."""
    return jax.dtypes.canonicalize_dtype(jnp.float64)


def scheduled_mark(dtype: DTypeLike) -> float:
    """Return what the state stores for an argument that is a schedule: the type's lowest number."""
    return float(jnp.finfo(dtype).min)


def _decay(
    argument: Array, exact: Sequence[Any], value: Array
) -> tuple[Decay, tuple[Array, Array]]:
    """Return β in force, and log β as a (high, low) pair."""
    complement, zero = 1 - value, jnp.zeros_like(value)
    vanishes = complement == 1
    log = jnp.log1p(-jnp.where(vanishes, 0.5, complement))
    log = jnp.where(vanishes, _LOG_OF_ZERO, log)
    parts = (zero, complement, log, zero)
    if exact:
        # A Python number is known beyond the type's digits, unless the state's value replaces it.
        unreplaced = value == argument
        parts = (jnp.where(unreplaced, x, y) for x, y in zip(exact, parts, strict=True))
    residue, complement, high, low = parts
    is_short = value < 0.5
    weight = jnp.where(is_short, -value, complement)
    return Decay(value, residue, complement, is_short, weight), (high, low)


@jax.custom_jvp
def _correction(log: Array, beta: Array, others: Array) -> Array:
    """Return 1/(1 − Πβ), given log Πβ, the last β, and the product of the others.

    Where the last β is 0 its logarithm has no derivative, but the product has.
    """
    return -1 / jnp.expm1(log)


@_correction.defjvp
def _correction_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    (log, beta, others), (log_tangent, beta_tangent, _) = primals, tangents
    vanishes = beta == 0
    correction = _correction(log, beta, others)
    usual = jnp.exp(jnp.where(vanishes, -1, log)) * correction**2
    slope = jnp.where(vanishes, 0, usual * jnp.where(vanishes, 0, log_tangent))
    return correction, slope + jnp.where(vanishes, others * beta_tangent, 0)


def _split(number: float, dtype: jnp.dtype) -> tuple[np.ndarray, float]:
    """Return a number rounded to a type, and what rounding took."""
    high = np.asarray(number, dtype)
    return high, number - float(high)


def _add(total: tuple[Array, Array], term: tuple[Array, Array]) -> tuple[Array, Array]:
    """Add two unevaluated sums (high + low), keeping the rounding error in the low part."""
    high = total[0] + term[0]
    part = high - total[0]
    error = (total[0] - (high - part)) + (term[0] - part)
    low = total[1] + term[1] + error
    normalized = high + low
    return normalized, low - (normalized - high)
