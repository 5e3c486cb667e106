"""One row for each rule, transformation and schedule: what it is, its reference, how to check it.

The command line looks names up here, and the checks in `tests/` run over all rows. To add a rule:
its file, its function in `optlab.reference`, and its row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import optax

from optlab import optimizers, reference, schedules, transforms
from optlab._types import Hyperparam, Schedule

Arrays = Sequence[np.ndarray]
TreeReference = Callable[..., tuple[list[np.ndarray], Any]]
"""(gradients, parameters, state, t, **hyperparameters) → (updates, state), None before t = 1."""

_NONNEGATIVE, _DECAY, _STEPS = "finite and >= 0", "in [0, 1)", "an integer >= 1"


@dataclass(frozen=True)
class Row:
    """A gradient transformation.

    Attributes:
        name: unique among all rows.
        summary: one line for people.
        constructor: makes the transformation; for an optimizer, from the learning rate first.
        reference: the same on lists of float64 arrays.
        fixed: arguments that make this row of the constructor, such as `momentum` of "momentum".
        samples: further arguments, so that together they reach every branch of the arithmetic.
        hyperparams: for each that may be scheduled, two valid values of which the first is the
            default or a common one.
        errors: arguments that must be refused, with the message.
        needs_params: whether `update` needs the parameters.
        exempt: checks that do not hold for this row, with the reason.
    """

    name: str
    summary: str
    constructor: Callable[..., optax.GradientTransformationExtraArgs]
    reference: TreeReference
    fixed: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[Mapping[str, Any], ...] = ({},)
    hyperparams: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    errors: tuple[tuple[Mapping[str, Any], str], ...] = ()
    needs_params: bool = False
    exempt: Mapping[str, str] = field(default_factory=dict)

    def make(self, *args: Hyperparam, **options: Any) -> optax.GradientTransformationExtraArgs:
        """Make the transformation, an optimizer from its learning rate."""
        return self.constructor(*args, **{**self.fixed, **options})


@dataclass(frozen=True)
class ScheduleRow:
    """A schedule.

    Attributes:
        name: that of the constructor, with a suffix behind a dot where it has several rows.
        summary: one line for people.
        constructor: makes the schedule.
        reference: (step, **arguments) → value, in float64.
        samples: arguments to check it with.
        errors: arguments that must be refused, with the message.
        endless: whether it goes on changing past its last knot.
    """

    name: str
    summary: str
    constructor: Callable[..., Schedule]
    reference: Callable[..., float]
    samples: tuple[Mapping[str, Any], ...]
    errors: tuple[tuple[Mapping[str, Any], str], ...]
    endless: bool = False


def _of_direction(rule: Callable[..., Any]) -> TreeReference:
    def tree_reference(gradients: Arrays, params: Arrays, state: Any, t: int, **hyperparams: Any):
        state = state or [{}] * len(gradients)
        pairs = [rule(g, s, t, **hyperparams) for g, s in zip(gradients, state, strict=True)]
        return [u for u, _ in pairs], [s for _, s in pairs]

    return tree_reference


def _of_optimizer(rule: Callable[..., Any]) -> TreeReference:
    def tree_reference(gradients: Arrays, params: Arrays, state: Any, t: int, **hyperparams: Any):
        state = state or [{}] * len(gradients)
        pairs = [
            rule(p, g, s, t, **hyperparams)
            for p, g, s in zip(params, gradients, state, strict=True)
        ]
        return [new - p for (new, _), p in zip(pairs, params, strict=True)], [s for _, s in pairs]

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
    return list(gradients), new


def _bad(name: str, value: float, required: str, /, **others: Any) -> tuple[dict[str, Any], str]:
    return {name: value, **others}, f"{name} must be {required}, got {name}={value}"


def _number_errors(*names: str, **others: Any) -> tuple[tuple[dict[str, Any], str], ...]:
    values = (-0.5, float("nan"), float("inf"))
    return tuple(_bad(name, value, _NONNEGATIVE, **others) for name in names for value in values)


def _decay_errors(*names: str, **others: Any) -> tuple[tuple[dict[str, Any], str], ...]:
    values = (-0.5, 1.0, float("nan"))
    return tuple(_bad(name, value, _DECAY, **others) for name in names for value in values)


_RATE = {"learning_rate": (0.1, 0.05)}
_MOMENTUM = {"momentum": (0.9, 0.5), "dampening": (0.0, 0.5)}
_ADAGRAD = {"eps": (1e-8, 0.1)}
_RMSPROP = {"decay": (0.9, 0.99), "eps": (1e-8, 0.1)}
_ADAM = {"b1": (0.9, 0.5), "b2": (0.999, 0.9), "eps": (1e-8, 0.1), "eps_root": (0.0, 0.1)}

_MOMENTUM_SAMPLES = ({}, {"nesterov": True}, {"dampening": 0.3, "nesterov": True})
_ADAGRAD_SAMPLES = ({}, {"initial_accumulator_value": 0.1, "eps": 0.01})
_RMSPROP_SAMPLES = (
    {},
    {"eps": 1e-3, "eps_in_sqrt": True, "initial_scale": 1.0},
    {"decay": 0.99, "centered": True, "eps": 1e-3},
    {"centered": True, "eps": 1e-3, "eps_in_sqrt": True},
)
_ADAM_SAMPLES = (
    {},
    {"nesterov": True},
    {"amsgrad": True, "b2": 0.9},
    {"b1": 0.0, "b2": 0.5, "eps": 0.1, "eps_root": 0.01},
)

OPTIMIZERS: Mapping[str, Row] = {
    row.name: row
    for row in (
        Row(
            name="sgd",
            summary="θ ← θ − αg",
            constructor=optimizers.sgd,
            reference=_of_optimizer(reference.sgd),
            hyperparams=_RATE,
            errors=(
                *_number_errors("learning_rate"),
                ({"nesterov": True}, "nesterov needs momentum, got momentum=None"),
                ({"dampening": 0.1}, "dampening needs momentum, got momentum=None"),
            ),
        ),
        Row(
            name="momentum",
            summary="v ← βv + g; θ ← θ − αv (heavy ball)",
            constructor=optimizers.sgd,
            reference=_of_optimizer(reference.sgd),
            fixed={"momentum": 0.9},
            samples=_MOMENTUM_SAMPLES,
            hyperparams=_RATE | _MOMENTUM,
            errors=(*_number_errors("learning_rate"), *_decay_errors("momentum", "dampening")),
        ),
        Row(
            name="adagrad",
            summary="s ← s + g²; θ ← θ − αg/(√s + ε)",
            constructor=optimizers.adagrad,
            reference=_of_optimizer(reference.adagrad),
            samples=_ADAGRAD_SAMPLES,
            hyperparams=_RATE | _ADAGRAD,
            errors=_number_errors("learning_rate", "eps", "initial_accumulator_value"),
        ),
        Row(
            name="rmsprop",
            summary="s ← βs + (1−β)g²; θ ← θ − αg/(√s + ε)",
            constructor=optimizers.rmsprop,
            reference=_of_optimizer(reference.rmsprop),
            samples=(
                *_RMSPROP_SAMPLES,
                {"momentum": 0.9},
                {"momentum": 0.8, "nesterov": True, "centered": True, "eps": 1e-3},
            ),
            hyperparams=_RATE | _RMSPROP | {"momentum": (0.9, 0.5)},
            errors=(
                *_number_errors("learning_rate", "eps", "initial_scale"),
                *_decay_errors("decay", "momentum"),
                ({"nesterov": True}, "nesterov needs momentum, got momentum=None"),
            ),
        ),
        Row(
            name="adam",
            summary="m, v averages of g, g², unbiased; θ ← θ − αm̂/(√v̂ + ε)",
            constructor=optimizers.adam,
            reference=_of_optimizer(reference.adam),
            samples=_ADAM_SAMPLES,
            hyperparams=_RATE | _ADAM,
            errors=(
                *_number_errors("learning_rate", "eps", "eps_root"),
                *_decay_errors("b1", "b2"),
                ({"mu_dtype": int}, "mu_dtype must be a floating-point type or None"),
            ),
        ),
        Row(
            name="adamw",
            summary="θ ← θ − α(m̂/(√v̂ + ε) + λθ), decay decoupled",
            constructor=optimizers.adamw,
            reference=_of_optimizer(reference.adamw),
            samples=(*_ADAM_SAMPLES, {"weight_decay": 0.3}),
            hyperparams=_RATE | _ADAM | {"weight_decay": (0.01, 0.2)},
            errors=(
                *_number_errors("learning_rate", "eps", "eps_root", "weight_decay"),
                *_decay_errors("b1", "b2"),
            ),
            needs_params=True,
            exempt={"zero_gradient_is_a_no_op": "decay moves the parameters"},
        ),
    )
}

TRANSFORMATIONS: Mapping[str, Row] = {
    row.name: row
    for row in (
        Row(
            name="scale_by_momentum",
            summary="the direction of momentum: v ← βv + (1−τ)g",
            constructor=optimizers.scale_by_momentum,
            reference=_of_direction(reference.scale_by_momentum),
            samples=_MOMENTUM_SAMPLES,
            hyperparams=_MOMENTUM,
            errors=(
                *_decay_errors("momentum", "dampening"),
                ({"accumulator_dtype": int}, "accumulator_dtype must be a floating-point type"),
            ),
        ),
        Row(
            name="scale_by_adagrad",
            summary="the direction of AdaGrad: g/(√s + ε)",
            constructor=optimizers.scale_by_adagrad,
            reference=_of_direction(reference.scale_by_adagrad),
            samples=_ADAGRAD_SAMPLES,
            hyperparams=_ADAGRAD,
            errors=_number_errors("eps", "initial_accumulator_value"),
        ),
        Row(
            name="scale_by_rmsprop",
            summary="the direction of RMSProp: g/(√s + ε)",
            constructor=optimizers.scale_by_rmsprop,
            reference=_of_direction(reference.scale_by_rmsprop),
            samples=_RMSPROP_SAMPLES,
            hyperparams=_RMSPROP,
            errors=(*_number_errors("eps", "initial_scale"), *_decay_errors("decay")),
        ),
        Row(
            name="scale_by_adam",
            summary="the direction of Adam: m̂/(√v̂ + ε)",
            constructor=optimizers.scale_by_adam,
            reference=_of_direction(reference.scale_by_adam),
            samples=_ADAM_SAMPLES,
            hyperparams=_ADAM,
            errors=(*_number_errors("eps", "eps_root"), *_decay_errors("b1", "b2")),
        ),
        Row(
            name="scale_by_learning_rate",
            summary="u ← −αu",
            constructor=transforms.scale_by_learning_rate,
            reference=_elementwise(lambda u, p, learning_rate: -learning_rate * u),
            samples=({"learning_rate": 0.1},),
            hyperparams=_RATE,
            errors=_number_errors("learning_rate"),
        ),
        Row(
            name="add_decayed_weights",
            summary="u ← u + λθ",
            constructor=transforms.add_decayed_weights,
            reference=_elementwise(reference.add_decayed_weights),
            samples=({"weight_decay": 0.1},),
            hyperparams={"weight_decay": (0.1, 0.2)},
            errors=_number_errors("weight_decay"),
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
            hyperparams={"max_abs": (0.5, 0.1)},
            errors=_number_errors("max_abs"),
        ),
        Row(
            name="clip_by_global_norm",
            summary="g ← g·min(1, c/‖g‖)",
            constructor=transforms.clip_by_global_norm,
            reference=_clip_by_global_norm,
            samples=({"max_norm": 0.5}, {"max_norm": 1e6}),
            hyperparams={"max_norm": (0.5, 0.1)},
            errors=_number_errors("max_norm"),
        ),
        Row(
            name="params_ema",
            summary="θ_avg ← aθ_avg + (1−a)θ, read with averaged_params",
            constructor=transforms.params_ema,
            reference=_params_ema,
            samples=({"decay": 0.9}, {"decay": 0.999, "warmup_power": 2 / 3}),
            hyperparams={"decay": (0.9, 0.5)},
            errors=(
                *_decay_errors("decay"),
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
                _bad("factor", 1.0, "in (0, 1)"),
                _bad("rtol", 1.0, _DECAY),
                *_number_errors("atol", "min_scale"),
                _bad("patience", 0, _STEPS),
                _bad("cooldown", -1, "an integer >= 0"),
                ({"mode": "least"}, "mode must be 'min' or 'max', got mode='least'"),
            ),
        ),
    )
}

"an integer >= 1"
_INNER = schedules.cosine(0.5, 20, 0.1)
_INNER_REFERENCE = partial(reference.cosine, init_value=0.5, decay_steps=20, end_value=0.1)
_WSD = {"peak_value": 0.1, "warmup_steps": 10, "stable_steps": 30, "decay_steps": 20}
_ONE_CYCLE = (
    {"peak_value": 0.1, "total_steps": 100},
    {
        "peak_value": 0.5,
        "total_steps": 7,
        "peak_fraction": 0.5,
        "div_factor": 3.0,
        "final_div_factor": 1e3,
        "momentum": (0.9, 0.8),
    },
)

SCHEDULES: Mapping[str, ScheduleRow] = {
    row.name: row
    for row in (
        ScheduleRow(
            name="constant",
            summary="α₀",
            constructor=schedules.constant,
            reference=reference.constant,
            samples=({"value": 0.1},),
            errors=(_bad("value", float("nan"), "finite"),),
        ),
        ScheduleRow(
            name="step_decay",
            summary="α₀·factor^⌊t/every⌋",
            constructor=schedules.step_decay,
            reference=reference.step_decay,
            samples=({"init_value": 0.1, "factor": 0.5, "every": 30},),
            errors=(
                _bad("every", 0, _STEPS, init_value=1.0, factor=0.1),
                _bad("factor", -0.1, _NONNEGATIVE, init_value=1.0, every=5),
            ),
            endless=True,
        ),
        ScheduleRow(
            name="multistep",
            summary="α₀·factor^(milestones ≤ t)",
            constructor=schedules.multistep,
            reference=reference.multistep,
            samples=({"init_value": 0.1, "factor": 0.1, "milestones": [30, 60, 61]},),
            errors=(
                (
                    {"init_value": 1.0, "factor": 0.1, "milestones": [60, 30]},
                    "milestones must be strictly ascending, got [60, 30]",
                ),
                (
                    {"init_value": 1.0, "factor": 0.1, "milestones": [0]},
                    "each of milestones must be an integer >= 1, got",
                ),
                (
                    {"init_value": 1.0, "factor": 0.1, "milestones": []},
                    "milestones must hold at least one step, got none",
                ),
            ),
        ),
        ScheduleRow(
            name="exponential",
            summary="α₀·e^(−kt)",
            constructor=schedules.exponential,
            reference=reference.exponential,
            samples=({"init_value": 0.1, "decay_rate": 0.01},),
            errors=(_bad("decay_rate", -0.1, _NONNEGATIVE, init_value=1.0),),
            endless=True,
        ),
        ScheduleRow(
            name="linear",
            summary="α₀ + (α_end − α₀)t/T",
            constructor=schedules.linear,
            reference=reference.linear,
            samples=(
                {"init_value": 1e-3, "end_value": 0.0, "transition_steps": 1000},
                {"init_value": 0.1, "end_value": 0.7, "transition_steps": 1},
            ),
            errors=(
                _bad("transition_steps", 0, _STEPS, init_value=1.0, end_value=0.0),
                _bad("init_value", float("inf"), "finite", end_value=0.0, transition_steps=1),
            ),
        ),
        ScheduleRow(
            name="polynomial",
            summary="α_end + (α₀ − α_end)(1 − t/T)^power",
            constructor=schedules.polynomial,
            reference=reference.polynomial,
            samples=(
                {"init_value": 0.1, "end_value": 0.01, "power": 2.0, "transition_steps": 50},
                {"init_value": 0.1, "end_value": 0.0, "power": 0.5, "transition_steps": 50},
            ),
            errors=(
                _bad("transition_steps", 0, _STEPS, init_value=1.0, end_value=0.0, power=2.0),
                _bad(
                    "power",
                    0.0,
                    "finite and > 0",
                    init_value=1.0,
                    end_value=0.0,
                    transition_steps=5,
                ),
            ),
        ),
        ScheduleRow(
            name="cosine",
            summary="α_end + (α₀ − α_end)·½(1 + cos(πt/T))",
            constructor=schedules.cosine,
            reference=reference.cosine,
            samples=(
                {"init_value": 1e-3, "decay_steps": 1000},
                {"init_value": 0.5, "decay_steps": 7, "end_value": 0.1},
            ),
            errors=(
                _bad("decay_steps", 0, _STEPS, init_value=1.0),
                _bad("decay_steps", 10.0, _STEPS, init_value=1.0),
                _bad("end_value", float("nan"), "finite", init_value=1.0, decay_steps=10),
            ),
        ),
        ScheduleRow(
            name="inverse_sqrt",
            summary="α₀/√(t + 1), or with warm-up α₀·min(t/W, √(W/t))",
            constructor=schedules.inverse_sqrt,
            reference=reference.inverse_sqrt,
            samples=({"value": 0.1}, {"value": 7e-4, "warmup_steps": 4000}),
            errors=(_bad("warmup_steps", -1, "an integer >= 0", value=1.0),),
            endless=True,
        ),
        ScheduleRow(
            name="warmup",
            summary="linear to another schedule's first value over W updates, then that schedule",
            constructor=schedules.warmup,
            reference=lambda step, schedule, **options: reference.warmup(
                step, schedule=_INNER_REFERENCE, **options
            ),
            samples=(
                {"schedule": _INNER, "warmup_steps": 5, "init_value": 0.01},
                {"schedule": _INNER, "warmup_steps": 0},
            ),
            errors=(
                _bad("warmup_steps", -1, "an integer >= 0", schedule=_INNER),
                (
                    {"schedule": 0.1, "warmup_steps": 5},
                    "schedule must be a function of the step, got 0.1",
                ),
            ),
        ),
        ScheduleRow(
            name="warmup_cosine",
            summary="linear to the peak over W updates, then a cosine to the end at T",
            constructor=schedules.warmup_cosine,
            reference=reference.warmup_cosine,
            samples=(
                {"peak_value": 1e-3, "warmup_steps": 100, "decay_steps": 1000},
                {
                    "peak_value": 0.3,
                    "warmup_steps": 3,
                    "decay_steps": 20,
                    "init_value": 0.1,
                    "end_value": 0.05,
                },
                {"peak_value": 0.3, "warmup_steps": 0, "decay_steps": 20},
            ),
            errors=(
                _bad("warmup_steps", -1, "an integer >= 0", peak_value=1.0, decay_steps=5),
                (
                    {"peak_value": 1.0, "warmup_steps": 5, "decay_steps": 5},
                    "decay_steps must be more than warmup_steps, got decay_steps=5",
                ),
                _bad("peak_value", float("nan"), "finite", warmup_steps=1, decay_steps=5),
            ),
        ),
        ScheduleRow(
            name="wsd",
            summary="warm-up, stable, decay (linear, cosine or 1 − √)",
            constructor=schedules.wsd,
            reference=reference.wsd,
            samples=(
                *({**_WSD, "end_value": 0.01, "shape": s} for s in ("linear", "cosine", "sqrt")),
                {**_WSD, "warmup_steps": 0, "stable_steps": 0},
            ),
            errors=(
                _bad("decay_steps", 0, _STEPS, peak_value=1.0, warmup_steps=1, stable_steps=1),
                (
                    {
                        "peak_value": 1.0,
                        "warmup_steps": 1,
                        "stable_steps": 1,
                        "decay_steps": 1,
                        "shape": "round",
                    },
                    "shape must be one of linear, cosine, sqrt, got shape='round'",
                ),
            ),
        ),
        ScheduleRow(
            name="triangular",
            summary="up and down between two values, with constant, halved or shrinking height",
            constructor=schedules.triangular,
            reference=reference.triangular,
            samples=(
                {"min_value": 0.01, "max_value": 0.1, "half_cycle_steps": 10},
                {"min_value": 0.0, "max_value": 0.1, "half_cycle_steps": 10, "form": "halving"},
                {
                    "min_value": 0.01,
                    "max_value": 0.1,
                    "half_cycle_steps": 7,
                    "form": "exponential",
                    "gamma": 0.99,
                },
            ),
            errors=(
                _bad("half_cycle_steps", 0, _STEPS, min_value=0.0, max_value=1.0),
                _bad("gamma", 0.0, "in (0, 1]", min_value=0.0, max_value=1.0, half_cycle_steps=1),
                (
                    {"min_value": 0.0, "max_value": 1.0, "half_cycle_steps": 1, "form": "saw"},
                    "form must be one of constant, halving, exponential, got form='saw'",
                ),
            ),
            endless=True,
        ),
        ScheduleRow(
            name="cosine_restarts",
            summary="half a cosine again and again, each longer and lower by a factor",
            constructor=schedules.cosine_restarts,
            reference=reference.cosine_restarts,
            samples=(
                {"init_value": 0.1, "decay_steps": 10},
                {
                    "init_value": 0.1,
                    "decay_steps": 10,
                    "end_value": 0.01,
                    "cycle_factor": 2,
                    "peak_factor": 0.5,
                },
            ),
            errors=(
                _bad("decay_steps", 0, _STEPS, init_value=1.0),
                _bad("cycle_factor", 0.5, "finite and >= 1", init_value=1.0, decay_steps=5),
                _bad("num_cycles", 0, _STEPS, init_value=1.0, decay_steps=5),
            ),
            endless=True,
        ),
        ScheduleRow(
            name="cosine_restarts.ending",
            summary="the same, for a number of cycles",
            constructor=schedules.cosine_restarts,
            reference=reference.cosine_restarts,
            samples=(
                {"init_value": 0.1, "decay_steps": 10, "num_cycles": 3},
                {
                    "init_value": 0.1,
                    "decay_steps": 10,
                    "end_value": 0.01,
                    "cycle_factor": 1.5,
                    "num_cycles": 3,
                },
            ),
            errors=(),
        ),
        ScheduleRow(
            name="one_cycle.learning_rate",
            summary="the one cycle's rate: half cosines up to the peak and down to almost nothing",
            constructor=lambda **options: schedules.one_cycle(**options).learning_rate,
            reference=lambda step, **options: reference.one_cycle(step, **options)[0],
            samples=_ONE_CYCLE,
            errors=(
                _bad("total_steps", 0, _STEPS, peak_value=1.0),
                _bad("peak_fraction", 1.0, "in (0, 1)", peak_value=1.0, total_steps=10),
                _bad("peak_fraction", 0.0, "in (0, 1)", peak_value=1.0, total_steps=10),
                _bad("div_factor", 0.0, "finite and > 0", peak_value=1.0, total_steps=10),
            ),
        ),
        ScheduleRow(
            name="one_cycle.momentum",
            summary="the momentum (or b1) that goes with it: down, and up again",
            constructor=lambda **options: schedules.one_cycle(**options).momentum,
            reference=lambda step, **options: reference.one_cycle(step, **options)[1],
            samples=_ONE_CYCLE,
            errors=(
                (
                    {"peak_value": 1.0, "total_steps": 10, "momentum": (0.85, 0.95)},
                    "momentum must be (m_max, m_min), got momentum=(0.85, 0.95)",
                ),
                (
                    {"peak_value": 1.0, "total_steps": 10, "momentum": 0.9},
                    "momentum must be a pair (m_max, m_min), got momentum=0.9",
                ),
            ),
        ),
        ScheduleRow(
            name="join",
            summary="schedules one after the other, each from its own step 0",
            constructor=schedules.join,
            reference=lambda step, schedules, boundaries: reference.join(
                step,
                schedules=[partial(reference.constant, value=0.2), _INNER_REFERENCE],
                boundaries=boundaries,
            ),
            samples=({"schedules": [schedules.constant(0.2), _INNER], "boundaries": [4]},),
            errors=(
                (
                    {"schedules": [_INNER, _INNER], "boundaries": [4, 8]},
                    "there must be one boundary less than schedules, got 2 boundaries for 2",
                ),
                (
                    {"schedules": [_INNER] * 3, "boundaries": [8, 4]},
                    "boundaries must be strictly ascending, got [8, 4]",
                ),
            ),
        ),
        ScheduleRow(
            name="scale",
            summary="another schedule times a number",
            constructor=schedules.scale,
            reference=lambda step, schedule, factor: reference.scale(
                step, schedule=_INNER_REFERENCE, factor=factor
            ),
            samples=({"schedule": _INNER, "factor": 0.5},),
            errors=(_bad("factor", float("nan"), "finite", schedule=_INNER),),
        ),
        ScheduleRow(
            name="clamp",
            summary="another schedule kept between two bounds",
            constructor=schedules.clamp,
            reference=lambda step, schedule, **bounds: reference.clamp(
                step, schedule=_INNER_REFERENCE, **bounds
            ),
            samples=({"schedule": _INNER, "min_value": 0.2, "max_value": 0.4},),
            errors=(
                (
                    {"schedule": _INNER, "min_value": 1.0, "max_value": 0.0},
                    "min_value must not exceed max_value, got min_value=1.0",
                ),
                ({"schedule": _INNER}, "min_value or max_value must be given, got neither"),
            ),
        ),
    )
}
