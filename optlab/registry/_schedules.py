"""The schedules; one that other schedules go into is checked with a cosine."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from optlab import reference, schedules
from optlab.registry._row import NONNEGATIVE, STEPS, ScheduleRow, bad

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


def _swa(step: int, schedule: Any, **options: Any) -> float:
    return reference.swa_schedule(step, schedule=_INNER_REFERENCE, **options)


SCHEDULES: Mapping[str, ScheduleRow] = {
    row.name: row
    for row in (
        ScheduleRow(
            name="constant",
            summary="α₀",
            constructor=schedules.constant,
            reference=reference.constant,
            samples=({"value": 0.1},),
            errors=(bad("value", float("nan"), "finite"),),
        ),
        ScheduleRow(
            name="step_decay",
            summary="α₀·factor^⌊t/every⌋",
            constructor=schedules.step_decay,
            reference=reference.step_decay,
            samples=({"init_value": 0.1, "factor": 0.5, "every": 30},),
            errors=(
                bad("every", 0, STEPS, init_value=1.0, factor=0.1),
                bad("factor", -0.5, NONNEGATIVE, init_value=1.0, every=5),
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
            errors=(bad("decay_rate", float("nan"), "finite", init_value=1.0),),
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
                bad("transition_steps", 0, STEPS, init_value=1.0, end_value=0.0),
                bad("init_value", float("inf"), "finite", end_value=0.0, transition_steps=1),
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
                bad("transition_steps", 0, STEPS, init_value=1.0, end_value=0.0, power=2.0),
                bad(
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
                bad("decay_steps", 0, STEPS, init_value=1.0),
                bad("decay_steps", 10.5, STEPS, init_value=1.0),
                bad("end_value", float("nan"), "finite", init_value=1.0, decay_steps=10),
            ),
        ),
        ScheduleRow(
            name="inverse_sqrt",
            summary="α₀/√(t + 1), or with warm-up α₀·min(t/W, √(W/t))",
            constructor=schedules.inverse_sqrt,
            reference=reference.inverse_sqrt,
            samples=({"value": 0.1}, {"value": 7e-4, "warmup_steps": 4000}),
            errors=(bad("warmup_steps", -1, "an integer >= 0", value=1.0),),
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
                bad("warmup_steps", -1, "an integer >= 0", schedule=_INNER),
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
                bad("warmup_steps", -1, "an integer >= 0", peak_value=1.0, decay_steps=5),
                (
                    {"peak_value": 1.0, "warmup_steps": 5, "decay_steps": 5},
                    "decay_steps must be more than warmup_steps, got decay_steps=5",
                ),
                bad("peak_value", float("nan"), "finite", warmup_steps=1, decay_steps=5),
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
                bad("decay_steps", 0, STEPS, peak_value=1.0, warmup_steps=1, stable_steps=1),
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
                bad("half_cycle_steps", 0, STEPS, min_value=0.0, max_value=1.0),
                bad("gamma", 0.0, "in (0, 1]", min_value=0.0, max_value=1.0, half_cycle_steps=1),
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
                bad("decay_steps", 0, STEPS, init_value=1.0),
                bad("cycle_factor", 0.5, "finite and >= 1", init_value=1.0, decay_steps=5),
                bad("num_cycles", 0, STEPS, init_value=1.0, decay_steps=5),
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
                bad("total_steps", 0, STEPS, peak_value=1.0),
                bad("peak_fraction", 1.0, "in (0, 1)", peak_value=1.0, total_steps=10),
                bad("peak_fraction", 0.0, "in (0, 1)", peak_value=1.0, total_steps=10),
                bad("div_factor", 0.0, "finite and > 0", peak_value=1.0, total_steps=10),
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
            name="swa_schedule",
            summary="another schedule, then over A updates to a rate for averages, and there",
            constructor=schedules.swa_schedule,
            reference=_swa,
            samples=(
                {"schedule": _INNER, "swa_value": 0.2, "start_step": 8, "anneal_steps": 5},
                {
                    "schedule": _INNER,
                    "swa_value": 0.2,
                    "start_step": 8,
                    "anneal_steps": 5,
                    "form": "linear",
                },
            ),
            errors=(
                bad("start_step", 0, STEPS, schedule=_INNER, swa_value=0.2, anneal_steps=5),
                bad("anneal_steps", 0, STEPS, schedule=_INNER, swa_value=0.2, start_step=8),
                (
                    {"schedule": _INNER, "swa_value": 0.2, "start_step": 8, "form": "sine"},
                    "form must be one of cosine, linear, paper, cyclic, got form='sine'",
                ),
                (
                    {"schedule": _INNER, "swa_value": 0.2, "start_step": 8},
                    "anneal_steps must be given for the form cosine, got anneal_steps=None",
                ),
            ),
        ),
        ScheduleRow(
            name="swa_schedule.paper",
            summary="the same, in a straight line from half the start of the average to 90% of it",
            constructor=schedules.swa_schedule,
            reference=_swa,
            samples=(
                {"schedule": _INNER, "swa_value": 0.2, "start_step": 161, "form": "paper"},
                {"schedule": _INNER, "swa_value": 0.05, "start_step": 15, "form": "paper"},
            ),
            errors=(
                (
                    {
                        "schedule": _INNER,
                        "swa_value": 0.2,
                        "start_step": 8,
                        "anneal_steps": 5,
                        "form": "paper",
                    },
                    "anneal_steps must be left out of the form paper, got anneal_steps=5",
                ),
            ),
        ),
        ScheduleRow(
            name="swa_schedule.cyclic",
            summary="the same, again and again in a straight line down to that rate",
            constructor=schedules.swa_schedule,
            reference=_swa,
            samples=(
                {
                    "schedule": _INNER,
                    "swa_value": 0.1,
                    "start_step": 8,
                    "form": "cyclic",
                    "cycle_steps": 3,
                    "peak_value": 0.4,
                },
            ),
            errors=(
                bad(
                    "cycle_steps",
                    0,
                    STEPS,
                    schedule=_INNER,
                    swa_value=0.2,
                    start_step=8,
                    form="cyclic",
                    peak_value=1.0,
                ),
            ),
            endless=True,
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
            errors=(bad("factor", float("nan"), "finite", schedule=_INNER),),
        ),
        ScheduleRow(
            name="clamp",
            summary="another schedule clipped to lie between two bounds",
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
