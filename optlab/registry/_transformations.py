"""The directions of the optimizers, and the transformations that stand before or after them."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from optlab import optimizers, reference, transforms
from optlab.registry._optimizers import (
    ADAGRAD,
    ADAGRAD_SAMPLES,
    ADAM,
    ADAM_SAMPLES,
    MOMENTUM,
    MOMENTUM_SAMPLES,
    RATE,
    RMSPROP,
    RMSPROP_SAMPLES,
)
from optlab.registry._row import (
    DECAY,
    STEPS,
    Arrays,
    Row,
    TreeReference,
    bad,
    decay_errors,
    number_errors,
)


def _of_direction(rule: Callable[..., Any]) -> TreeReference:
    def tree_reference(gradients: Arrays, params: Arrays, state: Any, t: int, **hyperparams: Any):
        state = state or [{}] * len(gradients)
        pairs = [rule(g, s, t, **hyperparams) for g, s in zip(gradients, state, strict=True)]
        return [u for u, _ in pairs], [s for _, s in pairs]

    return tree_reference


def _elementwise(function: Callable[..., np.ndarray]) -> TreeReference:
    def tree_reference(gradients: Arrays, params: Arrays, state: Any, t: int, **hyperparams: Any):
        pairs = zip(gradients, params, strict=True)
        return [function(g, p, **hyperparams) for g, p in pairs], state

    return tree_reference


def _clip_by_global_norm(gradients: Arrays, params: Arrays, state: Any, t: int, max_norm: float):
    return reference.clip_by_global_norm(gradients, max_norm), state


def _params_ema(gradients: Arrays, params: Arrays, state: Any, t: int, **hyperparams: Any):
    averages = params if state is None else state
    new = [
        reference.params_ema(p + u, average, t, **hyperparams)
        for p, u, average in zip(params, gradients, averages, strict=True)
    ]
    return new, new


TRANSFORMATIONS: Mapping[str, Row] = {
    row.name: row
    for row in (
        Row(
            name="scale_by_momentum",
            summary="the direction of momentum: v ← βv + (1−τ)g",
            constructor=optimizers.scale_by_momentum,
            reference=_of_direction(reference.scale_by_momentum),
            samples=MOMENTUM_SAMPLES,
            hyperparams=MOMENTUM,
            errors=(
                *decay_errors("momentum", "dampening"),
                ({"accumulator_dtype": int}, "accumulator_dtype must be a floating-point type"),
            ),
        ),
        Row(
            name="scale_by_adagrad",
            summary="the direction of AdaGrad: g/(√s + ε)",
            constructor=optimizers.scale_by_adagrad,
            reference=_of_direction(reference.scale_by_adagrad),
            samples=ADAGRAD_SAMPLES,
            hyperparams=ADAGRAD,
            errors=number_errors("eps", "initial_accumulator_value"),
        ),
        Row(
            name="scale_by_rmsprop",
            summary="the direction of RMSProp: g/(√s + ε)",
            constructor=optimizers.scale_by_rmsprop,
            reference=_of_direction(reference.scale_by_rmsprop),
            samples=RMSPROP_SAMPLES,
            hyperparams=RMSPROP,
            errors=(*number_errors("eps", "initial_scale"), *decay_errors("decay")),
        ),
        Row(
            name="scale_by_adam",
            summary="the direction of Adam: m̂/(√v̂ + ε)",
            constructor=optimizers.scale_by_adam,
            reference=_of_direction(reference.scale_by_adam),
            samples=ADAM_SAMPLES,
            hyperparams=ADAM,
            errors=(*number_errors("eps", "eps_root"), *decay_errors("b1", "b2")),
        ),
        Row(
            name="scale_by_learning_rate",
            summary="u ← −αu",
            constructor=transforms.scale_by_learning_rate,
            reference=_elementwise(lambda u, p, learning_rate: -learning_rate * u),
            samples=({"learning_rate": 0.1},),
            hyperparams=RATE,
            errors=number_errors("learning_rate"),
        ),
        Row(
            name="add_decayed_weights",
            summary="u ← u + λθ",
            constructor=transforms.add_decayed_weights,
            reference=_elementwise(reference.add_decayed_weights),
            samples=({"weight_decay": 0.1},),
            hyperparams={"weight_decay": (0.1, 0.2)},
            errors=number_errors("weight_decay"),
            needs_params=True,
            exempt={
                "zero_gradient_is_a_no_op": "decay moves the parameters",
            },
        ),
        Row(
            name="clip_by_value",
            summary="g ← max(−c, min(g, c))",
            constructor=transforms.clip_by_value,
            reference=_elementwise(lambda g, p, max_abs: reference.clip_by_value(g, max_abs)),
            samples=({"max_abs": 0.5},),
            exempt={"an_infinity_is_not_hidden": "bounds every element, infinite ones too"},
            hyperparams={"max_abs": (0.5, 0.1)},
            errors=number_errors("max_abs"),
        ),
        Row(
            name="clip_by_global_norm",
            summary="g ← g·min(1, c/‖g‖)",
            constructor=transforms.clip_by_global_norm,
            reference=_clip_by_global_norm,
            samples=({"max_norm": 0.5}, {"max_norm": 1e6}),
            hyperparams={"max_norm": (0.5, 0.1)},
            errors=number_errors("max_norm"),
        ),
        Row(
            name="params_ema",
            summary="θ_avg ← aθ_avg + (1−a)θ, read with averaged_params",
            constructor=transforms.params_ema,
            reference=_params_ema,
            samples=({"decay": 0.9}, {"decay": 0.999, "warmup_power": 2 / 3}),
            outcome=lambda updates, state: transforms.averaged_params(state),
            hyperparams={"decay": (0.9, 0.5)},
            errors=(
                *decay_errors("decay"),
                (
                    {"decay": 0.9, "warmup_power": 0.0},
                    "warmup_power must be finite and > 0, got warmup_power=0.0",
                ),
            ),
            needs_params=True,
        ),
        Row(
            name="reduce_on_plateau",
            summary="u ← scale·u, the scale cut when a metric fed as value= stops improving",
            constructor=transforms.reduce_on_plateau,
            reference=_elementwise(lambda u, p, **options: u),
            samples=({"patience": 2},),
            hyperparams={
                "factor": (0.1, 0.5),
                "rtol": (1e-4, 0.1),
                "atol": (0.0, 0.1),
                "min_scale": (0.0, 0.1),
            },
            errors=(
                bad("factor", 1.0, "in (0, 1)"),
                bad("rtol", 1.0, DECAY),
                *number_errors("atol"),
                bad("min_scale", 2.0, "in [0, 1]"),
                bad("patience", 0, STEPS),
                bad("cooldown", -1, "an integer >= 0"),
                ({"mode": "least"}, "mode must be 'min' or 'max', got mode='least'"),
            ),
        ),
    )
}

"an integer >= 1"
