"""PyTorch's schedulers and Hugging Face's schedules, at every step as recorded from them.

`tests/golden/record_schedules.py` recorded them, with and without momentum, past their ends too.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from golden.schedule_cases import FILE, SCHEDULES, STEPS
from optlab.dialects import huggingface
from optlab.dialects.pytorch import lr_scheduler

MODULES = {"pytorch": lr_scheduler, "huggingface": huggingface}
CASES = [
    pytest.param(framework, name, id=f"{framework}-{name}")
    for framework, cases in SCHEDULES.items()
    for name in cases
]
LAST = 2**31 - 1
FAR = (10**6, 2**24 + 1, LAST - 1, LAST)
"""Steps past all recorded ones, up to the last that is told apart."""


def build(case, module):
    """Return the schedule of a case, or the pair of a rate and a momentum."""
    make = getattr(module, case.name)
    if case.parts:
        return make([build(part, module) for part in case.parts], **case.arguments)
    return make(**({} if case.lr is None else {"lr": case.lr}), **case.arguments)


@functools.cache
def recording():
    with np.load(FILE) as file:
        return dict(file)


def curves(framework, name):
    """The schedules of a case and what is recorded of them, (schedules, steps)."""
    schedule = build(SCHEDULES[framework][name], MODULES[framework])
    pair = schedule if isinstance(schedule, tuple) else (schedule,)
    wanted = np.atleast_2d(recording()[f"{framework}/{name}"])
    made = [curve for curve in pair if curve is not None]
    assert len(made) == len(wanted)
    return made, wanted


def multiplies(case):
    """Whether step t takes t multiplications, which are too many at the last step of all."""
    return case.name == "MultiplicativeLR" or any(map(multiplies, case.parts))


@pytest.mark.parametrize(("framework", "name"), CASES)
def test_every_step_is_as_recorded_in_double(framework, name):
    with jax.enable_x64(True):
        steps = jnp.arange(STEPS)
        for curve, wanted in zip(*curves(framework, name), strict=True):
            values = np.asarray(jax.vmap(curve)(steps))[: len(wanted)]
            assert values.dtype == np.float64
            # Measured: 3.3e-14 at worst. PyTorch forms a rate from the one before, and keeps its
            # roundings.
            np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-12 * wanted.max())


@pytest.mark.parametrize(("framework", "name"), CASES)
def test_every_step_is_as_recorded_to_roundings_and_all_later_ones_are_finite(framework, name):
    far = (0,) * len(FAR) if multiplies(SCHEDULES[framework][name]) else FAR
    steps = jnp.array([*range(STEPS), *far])
    with jax.debug_nans(True):
        for curve, wanted in zip(*curves(framework, name), strict=True):
            values = np.asarray(jax.vmap(curve)(steps))
            assert values.dtype == np.float32
            assert np.isfinite(values).all()
            assert (values >= 0).all()
            # A handful of roundings; measured: 3.3 at worst.
            close = 4 * np.finfo(np.float32).eps * wanted.max()
            np.testing.assert_allclose(values[: len(wanted)], wanted, rtol=0, atol=close)


def test_every_public_schedule_is_recorded_and_says_how_it_was_made():
    def names(case):
        return {case.name}.union(*map(names, case.parts))

    for framework, cases in SCHEDULES.items():
        recorded = set().union(*(names(case) for case in cases.values()))
        assert recorded == set(MODULES[framework].__all__) - {"Cycle"}
        for name, case in cases.items():
            for curve in curves(framework, name)[0]:
                assert repr(curve).startswith(f"{case.name}(")
                assert curve.knots[0] == 0
                assert list(curve.knots) == sorted(set(curve.knots))


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_every_argument_is_described(module):
    for name in set(module.__all__) - {"Cycle"}:
        function = getattr(module, name)
        described = inspect.getdoc(function).split("Args:")[1].split("Raises:")[0]
        for argument in inspect.signature(function).parameters:
            assert f"    {argument}: " in described, (name, argument)


def test_a_step_may_be_traced_and_a_rate_mapped_over():
    make = {
        "StepLR": lambda lr: lr_scheduler.StepLR(lr, 10),
        "cosine": lambda lr: lr_scheduler.CosineAnnealingLR(lr, 50, eta_min=0.01),
        "chain": lambda lr: lr_scheduler.ChainedScheduler(
            [lr_scheduler.StepLR(lr, 10), lr_scheduler.LinearLR(lr)]
        ),
        "one cycle": lambda lr: lr_scheduler.OneCycleLR(lr, 100).learning_rate,
        "polynomial": lambda lr: huggingface.get_polynomial_decay_schedule_with_warmup(lr, 10, 90),
        "min_lr": lambda lr: huggingface.get_cosine_with_min_lr_schedule_with_warmup(
            lr, 10, 90, min_lr_rate=0.1
        ),
    }

    @jax.jit
    def rates(lrs, step):
        return {name: jax.vmap(lambda lr, f=f: f(lr)(step))(lrs) for name, f in make.items()}

    lrs = np.array([0.1, 0.25], np.float32)
    for step in (0, 33):
        for name, values in rates(lrs, step).items():
            wanted = [float(make[name](float(lr))(step)) for lr in lrs]
            np.testing.assert_allclose(values, wanted, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("cycle", ["OneCycleLR", "CyclicLR"])
def test_a_cycle_drives_the_rate_and_the_momentum_of_an_optimizer(cycle):
    schedules = {
        "OneCycleLR": lambda: lr_scheduler.OneCycleLR(0.1, total_steps=4),
        "CyclicLR": lambda: lr_scheduler.CyclicLR(0.01, 0.1, step_size_up=2),
    }[cycle]()
    tx = optlab.dialects.pytorch.sgd(schedules.learning_rate, momentum=schedules.momentum)
    params = jnp.zeros(())
    state = tx.init(params)
    for step in range(4):
        _, state = tx.update(jnp.ones(()), state, params)
        in_force = optlab.hyperparams(state)
        assert float(in_force["learning_rate"]) == float(schedules.learning_rate(step))
        assert float(in_force["momentum"]) == float(schedules.momentum(step))


def test_a_cycle_stays_at_its_last_values():
    one = lr_scheduler.OneCycleLR(0.1, total_steps=11)
    for curve, last in ((one.learning_rate, 4e-7), (one.momentum, 0.95)):
        assert {float(curve(step)) for step in (10, 11, 1000, LAST)} == {float(np.float32(last))}
    # Its last step is within the second phase.
    cut = lr_scheduler.OneCycleLR(0.1, total_steps=40, pct_start=0.7, three_phase=True)
    assert len({float(cut.learning_rate(step)) for step in (39, 40, 1000, LAST)}) == 1


def test_rates_given_as_arguments_are_met_exactly():
    # In float32, 0.3 + (0.1 − 0.3) is not 0.1.
    cycle = lr_scheduler.CyclicLR(0.3, 0.1, 5, base_momentum=0.1, max_momentum=0.3)
    cosine = lr_scheduler.CosineAnnealingLR(0.3, T_max=5, eta_min=0.1)
    ends = [float(np.float32(rate)) for rate in (0.3, 0.1)]
    for curve in (cycle.learning_rate, cycle.momentum, cosine):
        assert [float(curve(step)) for step in (0, 5, 10, 15)] == ends + ends


def test_cosines_keep_their_digits_near_0_and_after_many_waves():
    # cos²(½π·x) is (½π·2e-6)² at the second-last step; ½(1 + cos) in float32 has no digit left.
    long = lr_scheduler.CosineAnnealingLR(1.0, T_max=1_000_000)
    near = [float(long(step)) for step in (999_998, 1_000_002, 999_998 + 2_000_000 * 1000)]
    np.testing.assert_allclose(near, np.sin(1e-6 * np.pi) ** 2, rtol=4 * np.finfo(np.float32).eps)
    # A wave of 10/3 of an update.
    waves = huggingface.get_cosine_schedule_with_warmup(1.0, 0, 100, num_cycles=30)
    for step in (1, 10**6 + 1, 10**9 + 1):
        wanted = np.cos(0.3 * np.pi * (step % 10)) ** 2
        np.testing.assert_allclose(float(waves(step)), wanted, rtol=1e-6)


def test_rates_that_grow_end_before_they_overflow():
    for schedule in (
        lr_scheduler.StepLR(10.0, 1, gamma=1.5),
        lr_scheduler.MultiStepLR(10.0, [1, 1, 2], gamma=1e30),
        lr_scheduler.ExponentialLR(10.0, gamma=3e38),
        lr_scheduler.MultiplicativeLR(10.0, lambda step: 1e10),
        lr_scheduler.ChainedScheduler(
            [lr_scheduler.StepLR(10.0, 1, 1e10), lr_scheduler.ExponentialLR(10.0, 1e10)]
        ),
        lr_scheduler.CyclicLR(
            0.0, 10.0, 300, mode="exp_range", gamma=1.5, cycle_momentum=False
        ).learning_rate,
    ):
        assert np.isfinite([float(schedule(step)) for step in (2, 20, 299)]).all()


BAD = {
    "StepLR: step_size must be an integer >= 1, got step_size=0": lambda t: t.StepLR(1.0, 0),
    "StepLR: lr must be finite and >= 0, got lr=-1.0": lambda t: t.StepLR(-1.0, 5),
    "StepLR: gamma must be finite and >= 0, got gamma=nan": lambda t: t.StepLR(1.0, 5, np.nan),
    "MultiStepLR: each of milestones must be an integer >= 0, got each of milestones=-1": (
        lambda t: t.MultiStepLR(1.0, [-1])
    ),
    "MultiStepLR: milestones must be a sequence of steps, got milestones=30": (
        lambda t: t.MultiStepLR(1.0, 30)
    ),
    "ConstantLR: factor must be in [0, 1], got factor=2": lambda t: t.ConstantLR(1.0, 2),
    "LinearLR: start_factor must be in (0, 1], got start_factor=0": lambda t: t.LinearLR(1.0, 0),
    "LinearLR: total_iters must be an integer >= 1": lambda t: t.LinearLR(1.0, total_iters=0),
    "ExponentialLR: gamma must be finite and >= 0": lambda t: t.ExponentialLR(1.0, -0.5),
    "PolynomialLR: power must be finite and >= 0": lambda t: t.PolynomialLR(1.0, power=-1.0),
    "LambdaLR: lr_lambda must be a function, got lr_lambda=0.5; make a schedule for each group": (
        lambda t: t.LambdaLR(1.0, 0.5)
    ),
    "MultiplicativeLR: lr_lambda must be a function": lambda t: t.MultiplicativeLR(1.0, [abs]),
    "CosineAnnealingLR: T_max must be an integer >= 1": lambda t: t.CosineAnnealingLR(1.0, 1.5),
    "CosineAnnealingLR: eta_min must be finite and >= 0": (
        lambda t: t.CosineAnnealingLR(1.0, 5, -0.1)
    ),
    "CosineAnnealingWarmRestarts: T_mult must be an integer >= 1": (
        lambda t: t.CosineAnnealingWarmRestarts(1.0, 5, 1.5)
    ),
    "OneCycleLR: total_steps, or epochs and steps_per_epoch, must be given, got epochs=3": (
        lambda t: t.OneCycleLR(1.0, epochs=3)
    ),
    "OneCycleLR: pct_start must be in [0, 1]": lambda t: t.OneCycleLR(1.0, 9, pct_start=1.5),
    "OneCycleLR: anneal_strategy must be one of cos, linear, got anneal_strategy='sin'": (
        lambda t: t.OneCycleLR(1.0, 9, anneal_strategy="sin")
    ),
    "OneCycleLR: div_factor must be finite and > 0": lambda t: t.OneCycleLR(1.0, 9, div_factor=0),
    "OneCycleLR: max_momentum must be in [0, 1)": lambda t: t.OneCycleLR(1.0, 9, max_momentum=1),
    "OneCycleLR: three_phase must be True or False": lambda t: t.OneCycleLR(1.0, 9, three_phase=1),
    "OneCycleLR: total_steps must be more than 1 with this pct_start, got 1": (
        lambda t: t.OneCycleLR(1.0, 1, pct_start=1.0)
    ),
    "CyclicLR: step_size_down must be an integer >= 1": (
        lambda t: t.CyclicLR(0.0, 1.0, 5, step_size_down=0)
    ),
    "CyclicLR: mode must be one of triangular, triangular2, exp_range, got mode='saw'": (
        lambda t: t.CyclicLR(0.0, 1.0, 5, mode="saw")
    ),
    "CyclicLR: scale_mode must be one of cycle, iterations": (
        lambda t: t.CyclicLR(0.0, 1.0, 5, scale_fn=abs, scale_mode="epoch")
    ),
    "CyclicLR: scale_fn must be a function": lambda t: t.CyclicLR(0.0, 1.0, 5, scale_fn=0.5),
    "SequentialLR: schedule must be a function of the step, got 0.1": (
        lambda t: t.SequentialLR([0.1], [])
    ),
    "SequentialLR: there must be one milestone less than schedulers, got 1 milestones for 1": (
        lambda t: t.SequentialLR([t.StepLR(1.0, 5)], [5])
    ),
    "SequentialLR: milestones must be ascending, got [5, 3]": (
        lambda t: t.SequentialLR([t.StepLR(1.0, 5)] * 3, [5, 3])
    ),
    "ChainedScheduler: there must be at least one scheduler": lambda t: t.ChainedScheduler([]),
    "ChainedScheduler: schedulers must have the same lr, got 0.1, 0.2": (
        lambda t: t.ChainedScheduler([t.StepLR(0.1, 5), t.StepLR(0.2, 5)])
    ),
    "ChainedScheduler: schedulers must each multiply the rate, as StepLR or LinearLR, got Cosine": (
        lambda t: t.ChainedScheduler([t.CosineAnnealingLR(0.1, 5, eta_min=0.01)])
    ),
    "get_constant_schedule: lr must be finite and >= 0": lambda t: t.get_constant_schedule(-1.0),
    "get_constant_schedule_with_warmup: num_warmup_steps must be an integer >= 0": (
        lambda t: t.get_constant_schedule_with_warmup(1.0, -1)
    ),
    "get_linear_schedule_with_warmup: num_training_steps must be an integer >= 0": (
        lambda t: t.get_linear_schedule_with_warmup(1.0, 5, 10.5)
    ),
    "get_cosine_schedule_with_warmup: num_cycles must be in (0, 1e9]": (
        lambda t: t.get_cosine_schedule_with_warmup(1.0, 5, 10, 0.0)
    ),
    "get_cosine_schedule_with_warmup: num_cycles must be known at construction, got a traced": (
        lambda t: jax.vmap(lambda c: t.get_cosine_schedule_with_warmup(1.0, 5, 10, c)(3))(
            jnp.ones(2)
        )
    ),
    "get_cosine_with_hard_restarts_schedule_with_warmup: num_cycles must be an integer >= 1": (
        lambda t: t.get_cosine_with_hard_restarts_schedule_with_warmup(1.0, 5, 10, 1.5)
    ),
    "get_cosine_with_min_lr_schedule_with_warmup: one of min_lr and min_lr_rate must be given, "
    "got both": (
        lambda t: t.get_cosine_with_min_lr_schedule_with_warmup(
            1.0, 5, 10, min_lr=0.1, min_lr_rate=0.1
        )
    ),
    "get_polynomial_decay_schedule_with_warmup: lr must be more than lr_end": (
        lambda t: t.get_polynomial_decay_schedule_with_warmup(1e-8, 5, 10)
    ),
    "get_inverse_sqrt_schedule: timescale must be finite and > 0": (
        lambda t: t.get_inverse_sqrt_schedule(1.0, 5, timescale=0)
    ),
    "get_wsd_schedule: num_training_steps or num_stable_steps must be given, got neither": (
        lambda t: t.get_wsd_schedule(1.0, 5, 10)
    ),
    "get_wsd_schedule: num_training_steps must be an integer >= 15, got num_training_steps=10": (
        lambda t: t.get_wsd_schedule(1.0, 5, 10, 10)
    ),
    "get_wsd_schedule: decay_type must be one of linear, cosine, 1-sqrt, got decay_type='sqrt'": (
        lambda t: t.get_wsd_schedule(1.0, 5, 10, 20, decay_type="sqrt")
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_refused_at_construction(message):
    framework = "huggingface" if message.startswith("get_") else "pytorch"
    with pytest.raises(ValueError, match=r"^dialects\.") as error:
        BAD[message](MODULES[framework])
    module = MODULES[framework].__name__.removeprefix("optlab.")
    assert str(error.value).startswith(f"{module}.{message}")
