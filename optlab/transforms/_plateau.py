"""Reduce the learning rate when a metric has stopped improving.

    scale ← max(factor · scale, min_scale)      after `patience` checks without improvement
    u ← scale · u

A check improves on the best value so far if, for mode "min",

    value < best − |best| · rtol − atol

and the mirror image for "max"; |best| keeps the relative tolerance right for negative values. A
NaN never improves. After a reduction `cooldown` checks are not counted.

Reference: PyTorch's and Optax's transformation of this name. As in Optax and Keras the reduction
comes with the check that completes `patience` (PyTorch: one later).
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._tree import is_traced
from optlab._types import Array, Hyperparam
from optlab.rules import Rule, lift, number


def reduce_on_plateau(
    factor: Hyperparam = 0.1,
    patience: int = 10,
    rtol: Hyperparam = 1e-4,
    atol: Hyperparam = 0.0,
    cooldown: int = 0,
    *,
    min_scale: Hyperparam = 0.0,
    mode: str = "min",
) -> optax.GradientTransformationExtraArgs:
    """Scale updates down when a metric stops improving.

    Put it last in a chain and give the metric to `update(gradients, state, params, value=loss)`.
    An update without `value` checks nothing; under `jit`, where the arguments must be there every
    time, `check=False` (traced or not) says that this one's value is not to be looked at:

        tx.update(gradients, state, params, value=validation_loss, check=step % 100 == 0)

    Where `value` is the loss of a batch, for other rules in the chain, give the metric as `score`,
    which is then looked at alone, with the number of the evaluation that it comes from, counted
    from 1: `update(…, value=loss, score=validation_loss, evaluation=3)`. Each evaluation is checked
    once, by the first update that knows it, however many follow before the next one; number 0
    stands for none. `optlab.lab` does so with the validation score, and also says by `maximize`
    whether a higher one is better, which `mode` must agree with.

    Args:
        factor: of each reduction, in (0, 1).
        patience: checks in a row without improvement that make a plateau, ≥ 1.
        rtol: improvement asked for, relative to |best|, in [0, 1).
        atol: improvement asked for, in the unit of the value, ≥ 0.
        cooldown: checks not counted after a reduction, ≥ 0.
        min_scale: the least scale, in [0, 1].
        mode: "min" for a value that should fall, "max" for one that should rise.

    Returns:
        A transformation whose state holds `scale`, which `hyperparams` reads, and the best value so
        far.

    Raises:
        ValueError: a hyperparameter is out of its range, or the mode is unknown.

    Example:
        >>> import jax.numpy as jnp, optax, optlab
        >>> tx = optax.chain(optlab.sgd(1.0), reduce_on_plateau(0.5, patience=2))
        >>> params = jnp.zeros(())
        >>> state = tx.init(params)
        >>> for value in (3.0, 2.0, 2.0, 2.0):
        ...     updates, state = tx.update(jnp.ones(()), state, params, value=value)
        ...     print(updates)
        -1.0
        -1.0
        -1.0
        -0.5
    """
    who = "reduce_on_plateau"
    # Optax's inject_hyperparams makes traced arrays of integers.
    if not is_traced(patience):
        patience = _checks.check_count(who, "patience", patience, 1)
    if not is_traced(cooldown):
        cooldown = _checks.check_count(who, "cooldown", cooldown, 0)
    if mode not in ("min", "max"):
        _checks.fail(who, "mode must be 'min' or 'max'", f"mode={mode!r}")
    sign = 1 if mode == "min" else -1

    def worst():
        # Finite, so that a state can be searched for numbers that are not.
        largest = jnp.finfo(jax.dtypes.canonicalize_dtype(float)).max
        return jnp.array(sign * largest, float)

    def improves(value, best, h):
        margin = jnp.where(best == worst(), 0, jnp.abs(best) * h.rtol + h.atol)
        return sign * value < sign * best - margin

    def observe(state, h, extra_args):
        name = "value" if extra_args.get("score") is None else "score"
        value = extra_args.get(name)
        if value is None:
            return state, state.scale
        _checks.check_number(who, name, value, _checks.ANY)
        value = jnp.asarray(value, state.best_value.dtype)
        check = jnp.asarray(extra_args.get("check", True))
        if check.ndim or check.dtype != bool:
            got = f"{check.dtype} of shape {check.shape}"
            _checks.fail(who, "check must be one boolean", got)
        evaluation = state.evaluation
        if name == "score":
            _check_direction(who, mode, extra_args.get("maximize", mode == "max"))
            evaluation = _evaluation(who, extra_args.get("evaluation"))
            check &= evaluation > state.evaluation
        improved = improves(value, state.best_value, h)
        cooling = state.cooldown_left > 0
        num_bad = jnp.where(improved | cooling, 0, state.num_bad + 1)
        reduce = num_bad >= patience
        reduced = jnp.maximum(h.factor * state.scale, h.min_scale).astype(state.scale.dtype)
        cooldown_left = jnp.where(reduce, cooldown, jnp.maximum(state.cooldown_left - 1, 0))
        new = {
            "scale": jnp.where(reduce, reduced, state.scale),
            "best_value": jnp.where(improved, value, state.best_value),
            "num_bad": jnp.where(reduce, 0, num_bad),
            "cooldown_left": cooldown_left.astype(jnp.int32),
            "evaluation": evaluation,
        }
        checked = {
            name: jnp.where(check, value, getattr(state, name)) for name, value in new.items()
        }
        return state._replace(**checked), checked["scale"]

    rule = Rule(
        who,
        hyperparams={
            "factor": number(factor, _checks.INSIDE),
            "rtol": number(rtol, _checks.DECAY),
            "atol": number(atol),
            "min_scale": number(min_scale, _checks.UNIT),
        },
        fields={
            "scale": lambda: jnp.ones((), float),
            "best_value": worst,
            "num_bad": lambda: jnp.zeros((), jnp.int32),
            "cooldown_left": lambda: jnp.zeros((), jnp.int32),
            "evaluation": lambda: jnp.zeros((), jnp.int32),
        },
        readable={"scale": _checks.NONNEGATIVE},
        observe=observe,
        leaf=lambda u, slots, scale, p: (scale * u, slots),
        counter="step",
    )
    return lift(rule)


def _evaluation(who: str, number: Any) -> Array:
    """Require the number of an evaluation beside its score; return it."""
    number = jnp.asarray(-1 if number is None else number)
    if number.ndim or not jnp.issubdtype(number.dtype, jnp.integer):
        got = f"{number.dtype} of shape {number.shape}"
        _checks.fail(who, "evaluation must be one integer", got)
    if not is_traced(number) and number < 0:
        required = "evaluation must be given with score, an integer >= 0"
        _checks.fail(who, required, f"{number}", "count evaluations from 1")
    return number.astype(jnp.int32)


def _check_direction(who: str, mode: str, maximize: bool) -> None:
    wanted = "max" if maximize else "min"
    if mode != wanted:
        better = "higher" if maximize else "lower"
        _checks.fail(
            who, f"mode must be {wanted!r}, as a {better} score is better", f"mode={mode!r}"
        )
