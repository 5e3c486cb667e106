"""The schedules that are recorded, with the frameworks' own names and arguments.

A case for every option, for each kind of value that an option takes, for parts of a cycle that are
not whole, and for steps past the end.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("schedules.npz")

STEPS = 160
"""How many steps of a schedule are recorded, the first 0, unless it ends in an error before."""


@dataclass(frozen=True)
class Case:
    """One schedule.

    Attributes:
        name: of its class or function, in the framework and in optlab's dialect.
        arguments: all but the optimizer, or the rate in its place.
        lr: the optimizer's rate; None where the framework's own arguments give it.
        parts: the schedules that it is made of.
        steps: how many are recorded.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    lr: float | None = 0.1
    parts: tuple["Case", ...] = ()
    steps: int = STEPS


def _case(name, lr=0.1, parts=(), steps=STEPS, **arguments):
    return Case(name, arguments, lr, tuple(parts), steps)


def _one_cycle(total_steps, **arguments):
    arguments = {"max_lr": 1.0, **arguments}
    return _case("OneCycleLR", lr=None, steps=total_steps, total_steps=total_steps, **arguments)


def _cyclic(**arguments):
    return _case("CyclicLR", lr=None, base_lr=0.01, max_lr=0.1, **arguments)


PYTORCH = {
    "StepLR": _case("StepLR", step_size=30),
    "StepLR-gamma": _case("StepLR", step_size=7, gamma=0.5),
    "StepLR-growing": _case("StepLR", step_size=5, gamma=1.1),
    "StepLR-to-0": _case("StepLR", step_size=5, gamma=0.0),
    "MultiStepLR": _case("MultiStepLR", milestones=[30, 80]),
    "MultiStepLR-twice": _case("MultiStepLR", milestones=[10, 10, 20], gamma=0.5),
    "MultiStepLR-unsorted": _case("MultiStepLR", milestones=[20, 10], gamma=0.5),
    "MultiStepLR-at-0": _case("MultiStepLR", milestones=[0, 5], gamma=0.5),
    "MultiStepLR-growing": _case("MultiStepLR", milestones=[3], gamma=1.5),
    "MultiStepLR-none": _case("MultiStepLR", milestones=[], gamma=0.5),
    "ConstantLR": _case("ConstantLR"),
    "ConstantLR-factor": _case("ConstantLR", factor=0.1, total_iters=11),
    "ConstantLR-1": _case("ConstantLR", factor=1.0, total_iters=1),
    "LinearLR": _case("LinearLR"),
    "LinearLR-down": _case("LinearLR", start_factor=1.0, end_factor=0.1, total_iters=40),
    "LinearLR-to-0": _case("LinearLR", start_factor=0.9, end_factor=0.0, total_iters=37),
    "LinearLR-1": _case("LinearLR", start_factor=1e-3, total_iters=1),
    "ExponentialLR": _case("ExponentialLR", gamma=0.95),
    "ExponentialLR-growing": _case("ExponentialLR", gamma=1.02),
    "ExponentialLR-to-0": _case("ExponentialLR", gamma=0.0),
    "ExponentialLR-1": _case("ExponentialLR", gamma=1.0),
    "PolynomialLR": _case("PolynomialLR"),
    "PolynomialLR-power": _case("PolynomialLR", total_iters=50, power=2.0),
    "PolynomialLR-root": _case("PolynomialLR", total_iters=37, power=0.5),
    "PolynomialLR-0": _case("PolynomialLR", total_iters=10, power=0.0),
    "LambdaLR": _case("LambdaLR", lr_lambda=lambda step: 0.97**step),
    "LambdaLR-steps": _case("LambdaLR", lr_lambda=lambda step: 0.5 ** (step // 30)),
    "MultiplicativeLR": _case("MultiplicativeLR", lr_lambda=lambda step: 0.97),
    "MultiplicativeLR-step": _case("MultiplicativeLR", lr_lambda=lambda step: 1 - 1 / (step + 2)),
    "CosineAnnealingLR": _case("CosineAnnealingLR", T_max=50),
    "CosineAnnealingLR-eta_min": _case("CosineAnnealingLR", T_max=37, eta_min=1e-3),
    "CosineAnnealingLR-above": _case("CosineAnnealingLR", T_max=20, eta_min=0.3),
    "CosineAnnealingLR-1": _case("CosineAnnealingLR", T_max=1, eta_min=0.01),
    "CosineAnnealingLR-long": _case("CosineAnnealingLR", T_max=200),
    "CosineAnnealingWarmRestarts": _case("CosineAnnealingWarmRestarts", T_0=10),
    "CosineAnnealingWarmRestarts-T_mult": _case(
        "CosineAnnealingWarmRestarts", T_0=7, T_mult=2, eta_min=1e-3
    ),
    "CosineAnnealingWarmRestarts-3": _case("CosineAnnealingWarmRestarts", T_0=1, T_mult=3),
    **{
        f"OneCycleLR-{total}-{fraction}-{anneal}{'-three' * three}": _one_cycle(
            total, pct_start=fraction, anneal_strategy=anneal, three_phase=three
        )
        for total, fraction in ((101, 0.3), (50, 0.25), (37, 0.37), (20, 0.2))
        for anneal in ("cos", "linear")
        for three in (False, True)
    },
    "OneCycleLR": _one_cycle(100),
    "OneCycleLR-epochs": _case(
        "OneCycleLR", lr=None, steps=60, max_lr=0.1, epochs=6, steps_per_epoch=10
    ),
    "OneCycleLR-factors": _one_cycle(
        80, div_factor=3.0, final_div_factor=50.0, base_momentum=0.5, max_momentum=0.9
    ),
    "OneCycleLR-from-the-peak": _one_cycle(40, pct_start=0.0),
    "OneCycleLR-to-the-peak": _one_cycle(40, pct_start=1.0, anneal_strategy="linear"),
    "OneCycleLR-three-to-the-first": _one_cycle(40, pct_start=0.7, three_phase=True),
    "OneCycleLR-three-half": _one_cycle(40, pct_start=0.5, three_phase=True),
    "OneCycleLR-without-momentum": _one_cycle(40, cycle_momentum=False),
    "CyclicLR": _cyclic(step_size_up=20),
    "CyclicLR-halves": _cyclic(step_size_up=5, step_size_down=10),
    "CyclicLR-triangular2": _cyclic(step_size_up=5, step_size_down=10, mode="triangular2"),
    "CyclicLR-exp_range": _cyclic(step_size_up=5, step_size_down=15, mode="exp_range", gamma=0.99),
    "CyclicLR-growing": _cyclic(
        step_size_up=15, step_size_down=5, mode="exp_range", gamma=1.01, cycle_momentum=False
    ),
    "CyclicLR-scale_fn": _cyclic(step_size_up=7, scale_fn=lambda x: 1 / (5 ** (x * 0.0001))),
    "CyclicLR-iterations": _cyclic(
        step_size_up=7, scale_fn=lambda x: 0.98**x, scale_mode="iterations"
    ),
    "CyclicLR-momenta": _cyclic(step_size_up=9, base_momentum=0.5, max_momentum=0.95),
    "CyclicLR-without-momentum": _cyclic(step_size_up=9, cycle_momentum=False),
    "SequentialLR": _case(
        "SequentialLR",
        milestones=[20],
        parts=[
            _case("ConstantLR", factor=0.1, total_iters=20),
            _case("ExponentialLR", gamma=0.95),
        ],
    ),
    "SequentialLR-three": _case(
        "SequentialLR",
        milestones=[10, 90],
        parts=[
            _case("LinearLR", start_factor=0.01, total_iters=10),
            _case("CosineAnnealingLR", T_max=80, eta_min=1e-3),
            _case("StepLR", step_size=10, gamma=0.5),
        ],
    ),
    "SequentialLR-left-out": _case(
        "SequentialLR",
        milestones=[0, 30, 30],
        parts=[
            _case("LinearLR"),
            _case("PolynomialLR", total_iters=20),
            _case("ConstantLR"),
            _case("CosineAnnealingWarmRestarts", T_0=20),
        ],
    ),
    "SequentialLR-one": _case(
        "SequentialLR", milestones=[], parts=[_case("ExponentialLR", gamma=0.9)]
    ),
    "ChainedScheduler": _case(
        "ChainedScheduler",
        parts=[
            _case("ConstantLR", factor=0.1, total_iters=20),
            _case("ExponentialLR", gamma=0.99),
        ],
    ),
    "ChainedScheduler-five": _case(
        "ChainedScheduler",
        parts=[
            _case("LinearLR", start_factor=0.2, end_factor=0.8, total_iters=15),
            _case("MultiStepLR", milestones=[40, 90], gamma=0.5),
            _case("PolynomialLR", total_iters=150, power=0.9),
            _case("CosineAnnealingLR", T_max=160),
            _case("MultiplicativeLR", lr_lambda=lambda step: 0.99),
        ],
    ),
    "ChainedScheduler-chain": _case(
        "ChainedScheduler",
        parts=[
            _case(
                "ChainedScheduler",
                parts=[_case("StepLR", step_size=30), _case("ExponentialLR", gamma=1.01)],
            ),
            _case("LinearLR", start_factor=0.5),
        ],
    ),
}


def _warmed(name, short, *cases):
    """Return cases of a function of warm-up and training steps: (what is special, arguments)."""
    return {
        f"{short}{special and '-'}{special}": _case(
            name, **{"num_warmup_steps": 10, "num_training_steps": 100, **arguments}
        )
        for special, arguments in cases
    }


_NO_DECAY = ("no-decay", {"num_warmup_steps": 5, "num_training_steps": 5})
_ALL_WARMUP = ("all-warmup", {"num_warmup_steps": 9, "num_training_steps": 5})
_NO_WARMUP = ("no-warmup", {"num_warmup_steps": 0})

HUGGINGFACE = {
    "constant": _case("get_constant_schedule"),
    "constant_with_warmup": _case("get_constant_schedule_with_warmup", num_warmup_steps=17),
    "constant_with_warmup-0": _case("get_constant_schedule_with_warmup", num_warmup_steps=0),
    **_warmed(
        "get_linear_schedule_with_warmup", "linear", ("", {}), _NO_WARMUP, _NO_DECAY, _ALL_WARMUP
    ),
    **_warmed(
        "get_cosine_schedule_with_warmup",
        "cosine",
        ("", {}),
        _NO_WARMUP,
        _NO_DECAY,
        _ALL_WARMUP,
        *((str(number), {"num_cycles": number}) for number in (0.25, 1.0, 2.0, 0.3)),
        ("odd", {"num_training_steps": 47, "num_cycles": 1.5}),
        # π/6, which is no simple fraction.
        ("irrational", {"num_cycles": 0.5235987755982988}),
    ),
    **_warmed(
        "get_cosine_with_hard_restarts_schedule_with_warmup",
        "hard_restarts",
        ("", {}),
        _NO_WARMUP,
        _NO_DECAY,
        _ALL_WARMUP,
        ("3", {"num_training_steps": 101, "num_cycles": 3}),
        ("whole", {"num_cycles": 3}),
    ),
    **_warmed(
        "get_polynomial_decay_schedule_with_warmup",
        "polynomial",
        ("", {}),
        _NO_WARMUP,
        _ALL_WARMUP,
        ("power", {"power": 2.0, "lr_end": 0.01}),
        ("root", {"power": 0.5}),
        ("power-0", {"power": 0.0, "lr_end": 0.01}),
    ),
    "inverse_sqrt": _case("get_inverse_sqrt_schedule", num_warmup_steps=20),
    "inverse_sqrt-long": _case("get_inverse_sqrt_schedule", num_warmup_steps=10, timescale=1000),
    "inverse_sqrt-short": _case("get_inverse_sqrt_schedule", num_warmup_steps=100, timescale=10),
    "inverse_sqrt-no-warmup": _case("get_inverse_sqrt_schedule", num_warmup_steps=0),
    **_warmed(
        "get_cosine_with_min_lr_schedule_with_warmup",
        "min_lr",
        ("", {"min_lr": 0.01}),
        ("rate", {"min_lr_rate": 0.3, "num_cycles": 1.0}),
    ),
    **_warmed(
        "get_cosine_with_min_lr_schedule_with_warmup_lr_rate",
        "warmup_lr_rate",
        ("", {"min_lr": 0.01}),
        ("rate", {"min_lr_rate": 0.3, "warmup_lr_rate": 0.2}),
        ("1", {"num_warmup_steps": 1, "min_lr": 0.0, "warmup_lr_rate": 0.2}),
        ("0", {"num_warmup_steps": 0, "min_lr": 0.0}),
        ("all-warmup", {**_ALL_WARMUP[1], "min_lr": 0.02}),
    ),
    **{
        f"wsd-{warmup}-{decay}-{ratio}": _case(
            "get_wsd_schedule",
            num_warmup_steps=10,
            num_stable_steps=60,
            num_decay_steps=30,
            warmup_type=warmup,
            decay_type=decay,
            min_lr_ratio=ratio,
        )
        for warmup, decay, ratio in (
            ("linear", "linear", 0.0),
            ("cosine", "cosine", 0.0),
            ("1-sqrt", "linear", 0.0),
            ("cosine", "1-sqrt", 0.1),
            ("linear", "cosine", 0.2),
        )
    },
    "wsd": _case(
        "get_wsd_schedule", num_warmup_steps=10, num_decay_steps=30, num_training_steps=100
    ),
    "wsd-num_cycles": _case(
        "get_wsd_schedule",
        num_warmup_steps=0,
        num_decay_steps=50,
        num_training_steps=100,
        num_cycles=1.25,
        min_lr_ratio=0.1,
    ),
    "wsd-no-decay": _case(
        "get_wsd_schedule",
        num_warmup_steps=5,
        num_decay_steps=0,
        num_stable_steps=20,
        min_lr_ratio=0.5,
    ),
}

SCHEDULES = {"pytorch": PYTORCH, "huggingface": HUGGINGFACE}
