"""`noise_scale`: the noise of the gradient, measured while training, from its micro-batches.

    s ← d·s + (1 − d)·Ŝ        q ← d·q + (1 − d)·‖G‖²̂        B_noise = s/q while both are positive

Ŝ and ‖G‖²̂ are the estimates of one step (`estimate_noise`), d is `decay`. The micro-batches of an
accumulation are the small batches, their mean is the large one. Both averages start at 0 and have
the same bias, which their quotient is free of.

Reference: McCandlish et al., arXiv:1812.06162 (2018), appendix A.1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._tree import as_array, is_none, is_traced
from optlab._types import Array, ArrayLike, Tree
from optlab.rules._state import exportable
from optlab.scaling._estimate import NoiseEstimate, NoiseScale, of_squares, squared_norm
from optlab.wrappers._accumulate import AccumulateState
from optlab.wrappers._common import all_finite, scaled

_WHO = "noise_scale"


@exportable("noise_scale")
class NoiseScaleState(NamedTuple):
    """State of `noise_scale`.

    Numbers are float32, or float64 where x64 is enabled.

    Attributes:
        inner: the state of the wrapped transformation.
        number: () int32; micro-batches that this window holds so far.
        squares: () float; Σ‖g‖² over these micro-batches.
        inverses: () float; Σ1/b over them, b the examples of each.
        examples: () float; Σb over them.
        squared_norm: () float; q, the average of ‖G‖²̂, from 0.
        trace: () float; s, the average of Ŝ, from 0.
        weight: () float; what the averages' weights sum to, 1 − dⁿ after n measurements.
        measured: () int32; n, at most 2³¹ − 1.
    """

    inner: Any
    number: Array
    squares: Array
    inverses: Array
    examples: Array
    squared_norm: Array
    trace: Array
    weight: Array
    measured: Array

    def monitored(self) -> dict[str, Array]:
        """Return what `optlab.monitored` shows of this state."""
        return {"noise_scale": measured_noise(self).noise_scale}


def noise_scale(
    tx: optax.GradientTransformation, batch: ArrayLike | None = None, *, decay: float = 0.99
) -> optax.GradientTransformationExtraArgs:
    """Measure the gradient's noise scale from micro-batches; change nothing.

    The noise scale B is the batch size whose gradient has as much noise as signal, in examples. Far
    below it, twice the batch saves half of the updates; far above it, larger batches save nothing.
    Read it with `measured_noise`, or among what `optlab.monitored` returns. It grows as the loss
    falls, so measure it at several times.

    Put it around `optlab.accumulate(tx, every)`, or around Optax's
    `optax.MultiSteps(tx, every).gradient_transformation()` with its default `use_grad_mean=True`.
    Each window of at least two micro-batches is a measurement. It costs a norm of each gradient and
    no memory. A clipping belongs inside, where it does not change what is measured;
    `skip_nonfinite` and `dynamic_loss_scale` belong around.

    Around any other transformation, give each update an estimate of your own, such as that of
    `replica_noise`: `update(gradients, state, params, noise=estimate)`. An estimate that is given
    counts in place of the micro-batches.

    For adaptive rules this is the noise of the gradient, not of the rule's direction; coordinates
    with large gradients weigh most.

    Args:
        tx: `accumulate` or MultiSteps; any transformation if `noise=` is passed.
        batch: examples in each micro-batch, > 0; None where the calls pass `weight=` or `noise=`.
            Where a call passes `weight=`, as `accumulate` takes it, that is the number instead, and
            the noise scale has its unit, such as tokens.
        decay: d in [0, 1), of both averages. Below 0.99 the quotient is mostly chance.

    Returns:
        A transformation with state `NoiseScaleState`.

    Raises:
        ValueError: `tx` is no transformation, `batch` is not positive, or `decay` is outside its
            range; at update, nothing says how many examples a micro-batch has, or `tx` accumulates
            nothing and no `noise=` is passed.

    Example:
        Two micro-batches of one example, with the gradients (3, 1) and (1, −1):

        >>> import jax.numpy as jnp, optlab
        >>> tx = noise_scale(optlab.accumulate(optlab.adam(1e-3), 2), batch=1)
        >>> params = jnp.zeros(2)
        >>> state = tx.init(params)
        >>> for gradient in (jnp.array([3.0, 1.0]), jnp.array([1.0, -1.0])):
        ...     _, state = tx.update(gradient, state, params)
        >>> print(measured_noise(state).noise_scale)
        2.0

    Reference:
        McCandlish et al., arXiv:1812.06162 (2018).
    """
    _checks.check_transformation(_WHO, tx)
    if batch is not None:
        batch = _checks.check_number(_WHO, "batch", batch, _checks.POSITIVE)
    decay = float(_checks.check_number(_WHO, "decay", decay, _checks.DECAY))
    # Optax's own transformation is made of the methods of its object.
    accumulation = getattr(tx.update, "__self__", tx)
    if not getattr(accumulation, "_use_grad_mean", True):
        required = "MultiSteps must form the mean of the gradients, not their sum"
        remedy = "leave out use_grad_mean=False, or use optlab.accumulate"
        _checks.fail(_WHO, required, "use_grad_mean=False", remedy)
    inner = optax.with_extra_args_support(tx)

    def init(params: Tree) -> NoiseScaleState:
        zeros = {name: jnp.zeros((), float) for name in NoiseScaleState._fields[2:-1]}
        return NoiseScaleState(
            inner=inner.init(params),
            number=jnp.zeros((), jnp.int32),
            measured=jnp.zeros((), jnp.int32),
            **zeros,
        )

    def update(
        updates: Tree,
        state: Any,
        params: Tree | None = None,
        *,
        noise: NoiseEstimate | None = None,
        weight: ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[Tree, NoiseScaleState]:
        _checks.check_state_kind(_WHO, state, NoiseScaleState)
        weights = {} if weight is None else {"weight": weight}
        new_updates, new_inner = inner.update(updates, state.inner, params, **weights, **extra_args)
        if noise is not None:
            estimate = _checked_estimate(noise)
            return new_updates, _averaged(state._replace(inner=new_inner), estimate, True, decay)
        gradients = jax.tree.map(as_array, updates)
        _check_accumulates(state.inner, weight)
        size = jnp.asarray(_examples(batch, weight), float)
        counts = _counts(state.inner, new_inner, gradients) & (size > 0) & jnp.isfinite(size)
        size = jnp.where(counts, size, 1)
        # A window that a wrapper around has dropped leaves its numbers behind.
        begins, ends = _place(state.inner) == 0, _place(new_inner) == 0

        def plus(total: Array, more: ArrayLike) -> Array:
            sum_ = jnp.where(begins, 0, total) + jnp.where(counts, more, 0)
            return sum_.astype(total.dtype)

        number, examples = plus(state.number, 1), plus(state.examples, size)
        squares = plus(state.squares, squared_norm(gradients))
        inverses = plus(state.inverses, 1 / size)
        measures = ends & (number > 1)

        def measure() -> NoiseEstimate:
            own = jnp.where(counts, jnp.ones_like(size) if weight is None else size, 0)
            square = squared_norm(_mean(state.inner, gradients, own))
            n = jnp.maximum(number, 2).astype(float)
            return of_squares(squares / n, square, inverses / n, examples)

        def nothing() -> NoiseEstimate:
            return NoiseEstimate(jnp.zeros((), float), jnp.zeros((), float))

        if is_traced(measures):
            estimate = jax.lax.cond(measures, measure, nothing)
        else:  # outside `jit`, `cond` would be compiled anew in every call
            estimate = measure() if measures else nothing()
        new_state = state._replace(
            inner=new_inner,
            number=jnp.where(ends, 0, number),
            squares=jnp.where(ends, 0, squares),
            inverses=jnp.where(ends, 0, inverses),
            examples=jnp.where(ends, 0, examples),
        )
        return new_updates, _averaged(new_state, estimate, measures, decay)

    return optax.GradientTransformationExtraArgs(init, update)


def measured_noise(state: Any) -> NoiseScale:
    """Return what `noise_scale` measured, from any state that contains its state.

    Args:
        state: the state of a transformation in which it is nested anywhere: a chain or a wrapper,
            the `opt_state` of a TrainState or of an `nnx.Optimizer`, or any tree of them.

    Returns:
        `NoiseScale(noise_scale, squared_norm, trace, measured)`.

    Raises:
        ValueError: the state holds no `noise_scale`, or several.
    """
    who = "measured_noise"
    states = [node for node in jax.tree.leaves(state, is_leaf=_is_ours) if _is_ours(node)]
    if len(states) != 1:
        _checks.fail(
            who,
            "the state must hold one noise_scale",
            f"{len(states)} in a state of type {type(state).__name__}",
            "pass the part of the state that holds the one that you mean"
            if states
            else "wrap the transformation in optlab.scaling.noise_scale",
        )
    names = ("squared_norm", "trace", "weight", "measured")
    # Flax NNX wraps the arrays in variables, which `tree.leaves` unwraps.
    square, trace, weight, measured = (jax.tree.leaves(getattr(states[0], n))[0] for n in names)
    positive = (square > 0) & (trace > 0)
    ratio = jnp.where(positive, trace / jnp.where(positive, square, 1), jnp.nan)
    total = jnp.where(weight > 0, weight, 1)
    return NoiseScale(ratio, square / total, trace / total, measured)


def _is_ours(node: Any) -> bool:
    return isinstance(node, NoiseScaleState)


def _averaged(
    state: NoiseScaleState, estimate: NoiseEstimate, made: Array | bool, decay: float
) -> NoiseScaleState:
    """Return the state with one more measurement, where one is made and finite."""
    made = made & all_finite(estimate)

    def average(old: Array, new: ArrayLike) -> Array:
        return jnp.where(made, old + (1 - decay) * (new - old), old).astype(old.dtype)

    return state._replace(
        squared_norm=average(state.squared_norm, estimate.squared_norm),
        trace=average(state.trace, estimate.trace),
        weight=average(state.weight, 1.0),
        measured=jnp.where(made, optax.safe_increment(state.measured), state.measured),
    )


def _checked_estimate(noise: Any) -> NoiseEstimate:
    if not isinstance(noise, NoiseEstimate):
        _checks.fail(
            _WHO,
            "noise must be a NoiseEstimate",
            type(noise).__name__,
            "pass what replica_noise or estimate_noise returns",
        )
    return noise


def _check_accumulates(state: Any, weight: ArrayLike | None) -> None:
    """Require the state of `accumulate` or MultiSteps."""
    if not isinstance(state, AccumulateState | optax.MultiStepsState):
        _checks.fail(
            _WHO,
            "tx must accumulate micro-batches, or update must be given noise=",
            f"a state of type {type(state).__name__} and no noise",
            "wrap optlab.accumulate(tx, every), or pass the estimate of replica_noise",
        )
    if weight is not None and isinstance(state, optax.MultiStepsState):
        _checks.fail(
            _WHO,
            "all micro-batches of MultiSteps must weigh the same",
            "weight=",
            "use optlab.accumulate, which knows weights",
        )


def _examples(batch: ArrayLike | None, weight: ArrayLike | None) -> ArrayLike:
    """Return the number of examples in a micro-batch."""
    number = batch if weight is None else weight
    if number is None:
        _checks.fail(
            _WHO,
            "the examples in a micro-batch must be known",
            "batch=None and a call without weight=",
            "pass noise_scale(tx, batch=32), say, or update(..., weight=number)",
        )
    return number


def _place(state: Any) -> Array:
    """Return the number of calls in a window so far; 0 once it has ended."""
    return state.micro_step if isinstance(state, AccumulateState) else state.mini_step


def _counts(old: Any, new: Any, gradients: Tree) -> Array:
    """Return whether a micro-batch takes part in its window, if its weight lets it, a () bool."""
    if isinstance(old, AccumulateState):
        return all_finite(gradients)
    return (new.mini_step != old.mini_step) | (new.gradient_step != old.gradient_step)


def _mean(state: Any, gradients: Tree, own: Array) -> Tree:
    """Return the mean gradient of the window that a call ends.

    Args:
        state: of the accumulation before the call.
        gradients: those of the call.
        own: their weight; 0 if they do not take part.
    """

    def wide(x: Array) -> Array:
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    if isinstance(state, AccumulateState):
        # `total` is Σ w·g/every, and this call is number `every` of the window.
        every = (state.micro_step + 1).astype(own.dtype)
        before = state.weight * state.finite.astype(own.dtype)
        gathered = every / (before + own)
        # The call that starts a window finds the total of the last one.
        total = jax.tree.map(lambda x: jnp.where(state.micro_step == 0, 0, x), state.total)
    else:
        # `acc_grads` is the mean of the gradients so far.
        before = jnp.asarray(state.mini_step).astype(own.dtype)
        gathered, total = before / (before + own), state.acc_grads
    share = own / (before + own)

    def mean(g: Array | None, sum_: Array) -> Array:
        sum_ = scaled(wide(sum_), gathered)
        if g is None:
            return sum_
        return sum_ + scaled(jnp.where(own > 0, wide(g), 0), share)

    return jax.tree.map(mean, gradients, total, is_leaf=is_none)
