"""The wrappers, checked around Adam or AdamW, with the same hyperparameters."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from optlab import wrappers
from optlab.registry._optimizers import OPTIMIZERS
from optlab.registry._row import STEPS, Arrays, Row, bad

ADAM, ADAMW = OPTIMIZERS["adam"], OPTIMIZERS["adamw"]
_of_adam: Any = ADAM.reference
_of_adamw: Any = ADAMW.reference

_SKIPS = {
    "an_infinity_is_not_hidden": "skips the step",
    "a_nan_is_not_hidden_and_does_not_spread": "skips the step",
}
_LANDS = {
    **ADAMW.exempt,
    "low_precision_keeps_types_and_computes_in_float32": "updates take the parameters to values of "
    "their type, so they are not rounded from those of float32 parameters",
}


def _accumulate(
    gradients: Arrays, params: Arrays, state: Any, t: int, *, every: int, **hyperparams: Any
):
    inner, total = state or (None, [0.0] * len(gradients))
    total = [a + g for a, g in zip(total, gradients, strict=True)]
    if t % every:
        return [np.zeros_like(g) for g in gradients], (inner, total)
    mean = [a / every for a in total]
    updates, inner = _of_adam(mean, params, inner, t // every, **hyperparams)
    return updates, (inner, [0.0] * len(gradients))


def _dynamic_loss_scale(
    gradients: Arrays,
    params: Arrays,
    state: Any,
    t: int,
    *,
    initial_scale: float,
    growth_interval: int,
    max_scale: float,
    **hyperparams: Any,
):
    growths = (t - 1) // growth_interval
    scale = min(initial_scale * 2.0**growths, max_scale)
    return _of_adam([g / scale for g in gradients], params, state, t, **hyperparams)


def _stochastic_rounding(*args: Any, key: Any, **hyperparams: Any):
    return _of_adamw(*args, **hyperparams)


WRAPPERS: Mapping[str, Row] = {
    row.name: row
    for row in (
        Row(
            name="skip_nonfinite",
            summary="a step with a NaN or an Inf anywhere changes nothing",
            constructor=wrappers.skip_nonfinite,
            wraps=ADAM.constructor,
            reference=ADAM.reference,
            hyperparams=ADAM.hyperparams,
            errors=(bad("max_consecutive", 0, STEPS), bad("max_consecutive", 2.5, STEPS)),
            exempt=_SKIPS | {"the_counter_saturates": "`consecutive` starts anew with each step"},
        ),
        Row(
            name="dynamic_loss_scale",
            summary="g ← g/scale, the scale cut by an overflow and raised where there is room",
            constructor=wrappers.dynamic_loss_scale,
            wraps=ADAM.constructor,
            reference=_dynamic_loss_scale,
            samples=({"initial_scale": 4.0, "growth_interval": 300, "max_scale": 16.0},),
            hyperparams=ADAM.hyperparams,
            errors=(
                bad("min_scale", 0.0, "finite and > 0"),
                bad("max_scale", float("inf"), "finite and > 0"),
                bad("factor", 1.0, "finite and > 1"),
                bad("growth_interval", 0, STEPS),
                bad("max_consecutive", 0, STEPS),
                (
                    {"initial_scale": 0.5},
                    "initial_scale must be from min_scale to max_scale, got min_scale=1.0, "
                    "initial_scale=0.5, max_scale=16.0",
                ),
            ),
            exempt=_SKIPS | {"the_counter_saturates": "`since_change` starts anew"},
        ),
        Row(
            name="accumulate",
            summary="one step of the mean gradient of several micro-batches",
            constructor=wrappers.accumulate,
            wraps=ADAM.constructor,
            reference=_accumulate,
            samples=({"every": 1}, {"every": 2}),
            hyperparams=ADAM.hyperparams,
            errors=(bad("every", 0, STEPS), bad("every", 2.5, STEPS)),
            exempt=_SKIPS
            | {
                "the_counter_saturates": "`micro_step` starts anew",
                "a_none_gradient_leaves_its_slots_alone": "a window that starts empties `total`",
            },
        ),
        Row(
            name="master_params",
            summary="float32 copies of low-precision parameters, which the updates go to",
            constructor=wrappers.master_params,
            wraps=ADAMW.constructor,
            reference=ADAMW.reference,
            hyperparams=ADAMW.hyperparams,
            errors=(),
            needs_params=True,
            exempt=_LANDS | {"bad_hyperparameters_are_refused": "has none"},
        ),
        Row(
            name="kahan_summation",
            summary="low-precision parameters, and beside them the digits lost to rounding",
            constructor=wrappers.kahan_summation,
            wraps=ADAMW.constructor,
            reference=ADAMW.reference,
            hyperparams=ADAMW.hyperparams,
            errors=(),
            needs_params=True,
            exempt=_LANDS | {"bad_hyperparameters_are_refused": "has none"},
        ),
        Row(
            name="monitor",
            summary="the norms of gradients, updates and weights, recorded at every update",
            constructor=wrappers.monitor,
            wraps=ADAM.constructor,
            reference=ADAM.reference,
            hyperparams=ADAM.hyperparams,
            errors=(),
            needs_params=True,
            exempt={
                "a_none_gradient_leaves_its_slots_alone": "it records norms of the last update, "
                "which does not move that leaf",
                "bad_hyperparameters_are_refused": "has none",
            },
        ),
        Row(
            name="stochastic_rounding",
            summary="low-precision parameters rounded at random, right on average",
            constructor=wrappers.stochastic_rounding,
            wraps=ADAMW.constructor,
            reference=_stochastic_rounding,
            fixed={"key": np.zeros(2, np.uint32)},
            hyperparams=ADAMW.hyperparams,
            errors=(({"key": 0}, "key must be a random key, got key=0"),),
            needs_params=True,
            exempt=_LANDS,
        ),
    )
}
