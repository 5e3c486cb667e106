"""The transformations that stand before or after a direction."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from optlab import reference, transforms
from optlab.registry._optimizers import RATE, flag_errors
from optlab.registry._row import STEPS, Arrays, Row, TreeReference, bad


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


def _averaging(rule: Callable[..., Any]) -> TreeReference:
    """Return the reference of an average, from that of one array; at first θ₀ where it has none."""

    def tree_reference(gradients: Arrays, params: Arrays, state: Any, t: int, **options: Any):
        states, first = state or ([{}] * len(params), params)
        pairs = [
            rule(p + u, own, t, **options)
            for p, u, own in zip(params, gradients, states, strict=True)
        ]
        averages = [
            p if average is None else average for (average, _), p in zip(pairs, first, strict=True)
        ]
        return averages, ([own for _, own in pairs], first)

    return tree_reference


def _average(updates: Any, state: Any) -> Any:
    return transforms.averaged_params(state)


TRANSFORMATIONS: Mapping[str, Row] = {
    row.name: row
    for row in (
        Row(
            name="scale_by_learning_rate",
            summary="u ← −αu",
            constructor=transforms.scale_by_learning_rate,
            reference=_elementwise(lambda u, p, learning_rate: -learning_rate * u),
            samples=({"learning_rate": 0.1},),
            hyperparams=RATE,
            errors=flag_errors("flip_sign"),
            drift=(1e-7,),
        ),
        Row(
            name="add_decayed_weights",
            summary="u ← u + λθ",
            constructor=transforms.add_decayed_weights,
            reference=_elementwise(reference.add_decayed_weights),
            samples=({"weight_decay": 0.1},),
            hyperparams={"weight_decay": (0.1, 0.2)},
            drift=(1e-7,),
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
            drift=(0.0,),
        ),
        Row(
            name="clip_by_global_norm",
            summary="g ← g·min(1, c/‖g‖)",
            constructor=transforms.clip_by_global_norm,
            reference=_clip_by_global_norm,
            samples=({"max_norm": 0.5}, {"max_norm": 1e6}),
            hyperparams={"max_norm": (0.5, 0.1)},
            exemplar=True,
            drift=(1.5e-7, 0.0),
        ),
        Row(
            name="params_ema",
            summary="θ_avg ← aθ_avg + (1−a)θ, read with averaged_params",
            constructor=transforms.params_ema,
            reference=_params_ema,
            samples=(
                {"decay": 0.9},
                {"decay": 0.999, "warmup_power": 2 / 3},
                {"decay": 0.99, "warmup": "diffusers"},
                {"decay": 0.99, "warmup": lambda t: (t - 1) / (t + 1.0)},
            ),
            outcome=_average,
            hyperparams={"decay": (0.9, 0.5)},
            errors=(
                (
                    {"decay": 0.9, "warmup_power": 0.0},
                    "warmup_power must be finite and > 0, got warmup_power=0.0",
                ),
                (
                    {"decay": 0.9, "warmup_power": 1.0, "warmup": "timm"},
                    "one of warmup_power and warmup must be given, got both",
                ),
                (
                    {"decay": 0.9, "warmup": "keras"},
                    "warmup must be 'timm', 'diffusers' or a function, got warmup='keras'",
                ),
                (
                    {"decay": 0.9, "warmup": lambda t: 1.5},
                    "the value of warmup must be in [0, 1], got",
                ),
            ),
            needs_params=True,
            exemplar=True,
            drift=(5e-7, 2e-6, 7e-7, 7e-7),
        ),
        Row(
            name="params_average",
            summary="θ_avg ← θ_avg + (θ−θ_avg)/n from an update on, every so many",
            constructor=transforms.params_average,
            reference=_averaging(reference.params_average),
            samples=({}, {"start": 4, "every": 3}),
            outcome=_average,
            errors=(
                bad("start", -1, "an integer >= 0"),
                bad("every", 0, STEPS),
            ),
            needs_params=True,
            drift=(5e-5, 2.5e-5),
        ),
        Row(
            name="params_power_ema",
            summary="θ_avg ← θ_avg + (1−(1−1/t)^(γ+1))(θ−θ_avg), for several widths at once",
            constructor=transforms.params_power_ema,
            reference=_averaging(reference.params_power_ema),
            samples=({"sigma_rel": 0.10}, {"sigma_rel": 0.05}, {"sigma_rel": 12**-0.5}),
            outcome=_average,
            errors=(
                bad("sigma_rel", 0.3, "in (0, 1/√12]"),
                bad("sigma_rel", 0.0, "in (0, 1/√12]"),
                ({"sigma_rel": 0.1, "gamma": 1.0}, "one of sigma_rel and gamma must be given, got"),
                (
                    {"sigma_rel": (0.1, 0.2, 0.1)},
                    "widths must differ by more than 0.1%, got 0.1 and 0.1",
                ),
                ({"sigma_rel": ()}, "there must be at least one width, got none"),
            ),
            needs_params=True,
            drift=(1.7e-5, 9e-6, 5e-5),
        ),
        Row(
            name="params_lawa",
            summary="θ_avg = the mean of the last k of the parameters taken every so many updates",
            constructor=transforms.params_lawa,
            reference=_averaging(reference.params_lawa),
            samples=({"every": 1}, {"k": 3, "every": 4}),
            outcome=_average,
            errors=(
                bad("k", 0, STEPS, every=1),
                bad("every", 0, STEPS),
            ),
            needs_params=True,
            exemplar=True,
            drift=(2.5e-7, 1.8e-7),
            exempt={
                "the_counter_saturates": "two of its integers are places in a ring, no counts",
                "tree_map_params_finds_every_slot": "the ring has an axis before the parameter's",
            },
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
                bad("patience", 0, STEPS),
                bad("cooldown", -1, "an integer >= 0"),
                ({"mode": "least"}, "mode must be 'min' or 'max', got mode='least'"),
            ),
            exemplar=True,
            drift=(0.0,),
        ),
    )
}
