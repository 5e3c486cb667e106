"""The float64 schedules, against numbers derived by hand, slow direct formulas and Optax."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optlab import reference as ref

FAR = 2**31 - 1  # the last step an int32 count can hold
EXACT = {"rel": 2e-15, "abs": 0}  # some ten roundings of float64, 2.2e-16 each


def bind(schedule, /, **options):
    """A schedule as a function of the step alone."""
    return functools.partial(schedule, **options)


def at(schedule, *steps):
    return [schedule(step) for step in steps]


# Decays


def test_step_decay_falls_at_each_multiple_and_not_before():
    rate = bind(ref.step_decay, init_value=8.0, factor=0.5, every=3)
    assert at(rate, *range(10)) == [8, 8, 8, 4, 4, 4, 2, 2, 2, 1]
    assert rate(FAR) == 0  # ½^715827882 is below the least float


def test_multistep_falls_from_each_milestones_own_step_on():
    rate = bind(ref.multistep, init_value=8.0, factor=0.5, milestones=(2, 5, 5, 7))
    assert at(rate, *range(9), FAR) == [8, 8, 4, 4, 4, 1, 1, 0.5, 0.5, 0.5]
    assert ref.multistep(0, init_value=8.0, factor=0.5, milestones=(0,)) == 4
    assert ref.multistep(9, init_value=8.0, factor=0.5, milestones=()) == 8


def test_exponential_halves_in_every_half_life():
    rate = bind(ref.exponential, init_value=3.0, decay_rate=math.log(2) / 10)
    assert rate(0) == 3
    assert at(rate, 10, 20, 50) == pytest.approx([1.5, 0.75, 3 / 32], **EXACT)
    assert rate(5) == pytest.approx(3 / math.sqrt(2), **EXACT)
    assert rate(FAR) == 0
    assert ref.exponential(FAR, init_value=3.0, decay_rate=0.0) == 3


def test_polynomial_passes_its_squares_and_stays():
    rate = bind(ref.polynomial, init_value=10.0, end_value=1.0, power=2, transition_steps=3)
    assert at(rate, 0, 3, 4, FAR) == [10, 1, 1, 1]
    assert at(rate, 1, 2) == pytest.approx([5.0, 2.0], **EXACT)  # 1 + 9·(4/9), 1 + 9·(1/9)
    root = bind(ref.polynomial, init_value=0.0, end_value=2.0, power=0.5, transition_steps=4)
    assert at(root, 0, 3, 4) == [0, 1, 2]  # 2(1 − √(1 − t/4)), upwards


def test_polynomial_of_power_1_is_linear():
    options = {"init_value": 0.3, "end_value": 0.1, "transition_steps": 7}
    straight, power = bind(ref.linear, **options), bind(ref.polynomial, power=1.0, **options)
    assert at(power, *range(9)) == pytest.approx(at(straight, *range(9)), **EXACT)


@pytest.mark.parametrize("length", [3, 10, 1_000_000, FAR])
def test_decays_keep_all_digits_next_to_the_end(length):
    # One step before T: 1/T, 1/T², sin²(π/2T) ≈ (π/2T)², 1 − √(1 − 1/T) ≈ 1/2T + 1/8T².
    share = Fraction(1, length)
    sine = math.sin(math.pi / 2 / length)
    root = (share / 2 + share**2 / 8) if length > 100 else 1 - math.sqrt(1 - share)
    options = {"init_value": 1.0, "end_value": 0.0, "transition_steps": length}
    last = length - 1
    assert ref.linear(last, **options) == pytest.approx(float(share), **EXACT)
    assert ref.polynomial(last, power=2, **options) == pytest.approx(float(share**2), **EXACT)
    assert ref.cosine(last, init_value=1.0, decay_steps=length) == pytest.approx(sine**2, **EXACT)
    options = {"peak_value": 1.0, "warmup_steps": 0, "stable_steps": 0, "decay_steps": length}
    tail = share**3 / 10 if length > 100 else 0  # of the series of the root
    sqrt = ref.wsd(last, shape="sqrt", **options)
    assert sqrt == pytest.approx(float(root), rel=2e-15, abs=float(tail))


def test_decays_keep_all_digits_next_to_the_start():
    rise = bind(ref.linear, init_value=0.0, end_value=1.0, transition_steps=FAR)
    assert at(rise, 1, 3) == [1 / FAR, 3 / FAR]
    slow = bind(ref.cosine, init_value=0.0, end_value=1.0, decay_steps=1_000_000)
    assert slow(1) == pytest.approx(math.sin(math.pi / 2e6) ** 2, **EXACT)


# The inverse root


def test_inverse_sqrt_gives_update_n_the_value_over_root_n():
    rate = bind(ref.inverse_sqrt, value=0.6)
    assert at(rate, 0, 3, 8, 99) == pytest.approx([0.6, 0.3, 0.2, 0.06], **EXACT)
    assert rate(FAR) == 0.6 / math.sqrt(2**31)


def test_inverse_sqrt_with_warm_up_peaks_at_its_value():
    rate = bind(ref.inverse_sqrt, value=0.5, warmup_steps=4)
    assert at(rate, *range(5)) == [0, 0.125, 0.25, 0.375, 0.5]
    assert at(rate, 16, 64, 400) == pytest.approx([0.25, 0.125, 0.05], **EXACT)
    assert max(at(rate, *range(50))) == rate(4)
    assert ref.inverse_sqrt(0, value=0.5, warmup_steps=1) == 0
    assert ref.inverse_sqrt(1, value=0.5, warmup_steps=1) == 0.5


def test_inverse_sqrt_with_warm_up_is_the_transformers():
    d, warmup = 512, 4000
    rate = bind(ref.inverse_sqrt, value=(d * warmup) ** -0.5, warmup_steps=warmup)
    for n in (1, 7, 3999, 4000, 4001, 100_000):
        paper = d**-0.5 * min(n**-0.5, n * warmup**-1.5)
        assert rate(n) == pytest.approx(paper, rel=1e-14)


# Warm-up and warm-up–stable–decay


def test_warmup_meets_the_schedules_own_start():
    rate = bind(ref.warmup, schedule=lambda step: 8.0 / (step + 1), warmup_steps=4)
    assert at(rate, *range(8)) == [0, 2, 4, 6, 8, 4, 8 / 3, 2]
    raised = bind(rate, init_value=4.0)
    assert at(raised, *range(6)) == [4, 5, 6, 7, 8, 4]


def test_warmup_of_no_length_is_the_schedule():
    rate = bind(ref.warmup, schedule=lambda step: 8.0 / (step + 1), warmup_steps=0, init_value=5.0)
    assert at(rate, 0, 1, 3) == [8, 4, 2]


def test_warmup_in_front_of_a_cosine_is_warmup_cosine():
    cosine = bind(ref.cosine, init_value=0.7, decay_steps=20, end_value=0.1)
    composed = bind(ref.warmup, schedule=cosine, warmup_steps=5, init_value=0.2)
    whole = bind(
        ref.warmup_cosine,
        init_value=0.2,
        peak_value=0.7,
        warmup_steps=5,
        decay_steps=25,
        end_value=0.1,
    )
    assert at(composed, *range(30), FAR) == at(whole, *range(30), FAR)


@pytest.mark.parametrize(
    ("shape", "quarter", "half"),
    [("linear", 0.75, 0.5), ("cosine", (2 + math.sqrt(2)) / 4, 0.5), ("sqrt", 0.5, 1 - 0.5**0.5)],
)
def test_wsd_passes_its_knots_and_decays_along_its_shape(shape, quarter, half):
    options = {"warmup_steps": 4, "stable_steps": 3, "decay_steps": 8, "shape": shape}
    rate = bind(ref.wsd, peak_value=5.0, init_value=1.0, end_value=2.0, **options)
    assert at(rate, *range(8)) == [1, 2, 3, 4, 5, 5, 5, 5]
    assert at(rate, 9, 11) == pytest.approx([2 + 3 * quarter, 2 + 3 * half], **EXACT)
    assert at(rate, 15, 16, FAR) == [2, 2, 2]
    decay = at(rate, *range(7, 16))
    assert decay == sorted(decay, reverse=True)


def test_wsd_leaves_out_parts_of_no_length():
    def rate(*steps, warmup, stable, decay, **options):
        lengths = {"warmup_steps": warmup, "stable_steps": stable, "decay_steps": decay}
        return at(bind(ref.wsd, peak_value=4.0, **lengths, **options), *steps)

    assert rate(0, 1, 2, 3, warmup=0, stable=0, decay=2) == [4, 2, 0, 0]
    assert rate(0, 1, 2, 3, warmup=2, stable=0, decay=2) == [0, 2, 4, 2]
    assert rate(0, 1, 2, 3, warmup=0, stable=2, decay=0, end_value=1.0) == [4, 4, 1, 1]
    assert rate(0, 1, 2, 3, warmup=1, stable=1, decay=0, shape="sqrt") == [0, 4, 0, 0]
    assert rate(0, warmup=0, stable=0, decay=0) == [0]


def test_wsd_without_a_plateau_is_warmup_cosine():
    ours = bind(
        ref.wsd, peak_value=0.7, warmup_steps=5, stable_steps=0, decay_steps=9, shape="cosine"
    )
    theirs = bind(ref.warmup_cosine, peak_value=0.7, warmup_steps=5, decay_steps=14)
    assert at(ours, *range(16)) == at(theirs, *range(16))


# Cycles


def test_triangular_rises_and_falls_for_ever():
    rate = bind(ref.triangular, min_value=1.0, max_value=5.0, half_cycle_steps=4)
    assert at(rate, *range(17)) == [1, 2, 3, 4, 5, 4, 3, 2, 1, 2, 3, 4, 5, 4, 3, 2, 1]
    assert at(rate, 8 * 10**8, 8 * 10**8 + 3) == [1, 4]
    assert rate(FAR) == 2  # 2³¹ − 1 is one step before a multiple of 8
    shortest = bind(ref.triangular, min_value=0.1, max_value=0.3, half_cycle_steps=1)
    assert at(shortest, 0, 1, 2, 3) == [0.1, 0.3, 0.1, 0.3]


def test_triangular_halves_after_each_full_cycle():
    rate = bind(ref.triangular, min_value=1, max_value=9, half_cycle_steps=2, form="halving")
    assert at(rate, *range(13)) == [1, 5, 9, 5, 1, 3, 5, 3, 1, 2, 3, 2, 1]
    assert rate(FAR) == 1


def test_triangular_shrinks_at_every_step():
    options = {"half_cycle_steps": 2, "form": "exponential", "gamma": 0.5}
    rate = bind(ref.triangular, min_value=1.0, max_value=9.0, **options)
    assert at(rate, *range(7)) == [1, 1 + 4 / 2, 1 + 8 / 4, 1 + 4 / 8, 1, 1 + 4 / 32, 1 + 8 / 64]
    assert rate(FAR) == 1
    unshrunk = bind(rate, gamma=1.0)
    assert at(unshrunk, *range(9)) == at(bind(rate, form="constant"), *range(9))


def test_triangular_agrees_with_smiths_listing():
    low, high, half = 1e-3, 6e-3, 7

    def listing(step, form):
        cycle = math.floor(1 + step / (2 * half))
        x = abs(step / half - 2 * cycle + 1)
        amplitude = (high - low) * max(0.0, 1 - x)
        return low + amplitude * {"constant": 1, "halving": 2.0 ** (1 - cycle)}.get(
            form, 0.99**step
        )

    for form in ("constant", "halving", "exponential"):
        options = {"min_value": low, "max_value": high, "half_cycle_steps": half, "form": form}
        ours = at(bind(ref.triangular, gamma=0.99, **options), *range(100))
        assert ours == pytest.approx([listing(step, form) for step in range(100)], rel=1e-13)


def restarts(lengths, peaks, end, num_steps):
    """The restarts written out, one cycle after another."""
    values = []
    for length, peak in zip(lengths, peaks, strict=True):
        for moved in range(length):
            values.append(end + 0.5 * (peak - end) * (1 + math.cos(math.pi * moved / length)))
    return (values + [end] * num_steps)[:num_steps]


def test_cosine_restarts_repeat_one_cycle():
    rate = bind(ref.cosine_restarts, init_value=5.0, decay_steps=6, end_value=1.0)
    one = [5, 3 + math.sqrt(3), 4, 3, 2, 3 - math.sqrt(3)]
    assert at(rate, *range(18)) == pytest.approx(one * 3, rel=4e-15)
    assert at(rate, 0, 6, 12, 6 * 10**8) == [5] * 4
    assert FAR % 6 == 1
    assert rate(FAR) == rate(1)


def test_cosine_restarts_jump_from_next_to_the_end_to_the_new_peak():
    rate = bind(ref.cosine_restarts, init_value=8.0, decay_steps=4, cycle_factor=2, peak_factor=0.5)
    assert at(rate, 0, 4, 12, 28) == [8, 4, 2, 1]
    assert at(rate, 2, 8, 20) == pytest.approx([4, 2, 1], **EXACT)
    before = [8 * math.sin(math.pi / 8) ** 2, 4 * math.sin(math.pi / 16) ** 2]
    assert at(rate, 3, 11) == pytest.approx(before, **EXACT)
    assert min(before) > 0


def test_cosine_restarts_end_with_the_last_cycle():
    options = {"init_value": 8.0, "decay_steps": 4, "cycle_factor": 2, "end_value": 0.25}
    rate = bind(ref.cosine_restarts, num_cycles=2, **options)
    endless = bind(ref.cosine_restarts, **options)
    assert at(rate, *range(12)) == at(endless, *range(12))
    assert rate(11) > 0.25
    assert at(rate, 12, 13, FAR) == [0.25] * 3
    equal = bind(ref.cosine_restarts, init_value=8.0, decay_steps=4, num_cycles=3)
    assert at(equal, 0, 4, 8, 12, FAR) == [8, 8, 8, 0, 0]


def test_cosine_restarts_of_one_cycle_are_the_cosine():
    options = {"init_value": 0.7, "decay_steps": 11, "end_value": 0.2}
    once = bind(ref.cosine_restarts, num_cycles=1, **options)
    cosine = bind(ref.cosine, **options)
    assert at(once, *range(14)) == pytest.approx(at(cosine, *range(14)), **EXACT)


@pytest.mark.parametrize(
    ("decay_steps", "cycle_factor", "lengths"),
    [
        (2, 1.25, [2, 2, 3, 4, 5]),  # 2, 2.5, 3.125, 3.90625, 4.8828125: a half goes to the even
        (6, 1.25, [6, 8, 9, 12, 15]),  # 6, 7.5, 9.375, 11.71875, 14.6484375
        (5, 1.1, [5, 6, 6, 7, 7]),  # 5, 5.5 + 4e-16, 6.05, 6.655, 7.3205: the float 1.1 exceeds 1.1
        (5, 0.9, [5, 5, 4, 4, 3]),  # 5, 4.5 + 1e-16, 4.05, 3.645, 3.2805: so does the float 0.9
        (5, 3, [5, 15, 45, 135, 405]),
        (6, 0.5, [6, 3, 2]),  # 6, 3, 1.5, then 0.75 → 1 below
    ],
)
def test_cosine_restarts_round_the_length_of_each_cycle(decay_steps, cycle_factor, lengths):
    ours = bind(
        ref.cosine_restarts,
        init_value=1.0,
        decay_steps=decay_steps,
        end_value=0.1,
        cycle_factor=cycle_factor,
        peak_factor=0.8,
        num_cycles=len(lengths),
    )
    steps = sum(lengths) + 3
    peaks = [0.1 + 0.9 * 0.8**i for i in range(len(lengths))]
    expected = restarts(lengths, peaks, 0.1, steps)
    assert at(ours, *range(steps)) == pytest.approx(expected, rel=1e-14)


def test_cosine_restarts_with_long_cycles_are_exact_far_out():
    rate = bind(ref.cosine_restarts, init_value=1.0, decay_steps=1, cycle_factor=2)
    for i in (5, 20, 30):  # cycle i begins at 2^i − 1
        assert rate(2**i - 1) == 1
        assert rate(2**i - 1 + 2 ** (i - 1)) == pytest.approx(0.5, **EXACT)
        assert rate(2**i - 2) == pytest.approx(math.sin(math.pi / 2**i) ** 2, **EXACT)
    assert rate(FAR) == 1


def test_cosine_restarts_that_shrink_to_nothing_stay_at_the_end():
    options = {"init_value": 1.0, "decay_steps": 6, "cycle_factor": 0.5, "end_value": 0.25}
    rate = bind(ref.cosine_restarts, **options)  # of 6, 3, 2 (1.5) and 1 (0.75) steps; then 0.375
    assert at(rate, 0, 6, 9, 11) == [1] * 4
    assert at(rate, 12, 13, FAR) == [0.25] * 3


def test_one_cycle_passes_its_three_knots():
    cycle = bind(ref.one_cycle, peak_value=0.5, total_steps=100)
    assert at(cycle, 0, 30) == [(0.02, 0.95), (0.5, 0.85)]
    assert at(cycle, 100, 101, FAR) == [(0.5 / 1e4, 0.95)] * 3
    assert cycle(15) == pytest.approx((0.26, 0.9), **EXACT)
    assert cycle(65) == pytest.approx((0.250025, 0.9), **EXACT)
    assert cycle(10) == pytest.approx((0.02 + 0.48 / 4, 0.95 - 0.1 / 4), **EXACT)  # ½(1 − cos π/3)


@pytest.mark.parametrize(
    ("total_steps", "peak_fraction"), [(10, 0.3), (7, 0.3), (1, 0.5), (64, 0.9), (30, 0.1)]
)
def test_one_cycle_follows_its_formula_with_the_knot_at_a_real_number(total_steps, peak_fraction):
    options = {"div_factor": 4.0, "final_div_factor": 1000.0, "momentum": (0.9, 0.6)}
    knot = Fraction(peak_fraction) * total_steps
    for step in range(total_steps + 3):
        if step <= knot:
            x, ends = step / knot, (0.5, 2.0)
        else:
            x, ends = min((step - knot) / (total_steps - knot), 1), (2.0, 0.002)
        ends_of_momentum = (0.9, 0.6) if step <= knot else (0.6, 0.9)
        expected = [
            b + 0.5 * (a - b) * (1 + math.cos(math.pi * x)) for a, b in (ends, ends_of_momentum)
        ]
        got = ref.one_cycle(
            step, peak_value=2.0, total_steps=total_steps, peak_fraction=peak_fraction, **options
        )
        assert got == pytest.approx(expected, rel=1e-12)


def test_one_cycle_is_flat_at_the_start_the_peak_and_the_end():
    total = 10**6
    cycle = bind(ref.one_cycle, peak_value=1.0, total_steps=total)
    for knot in (0, 300_000, total):
        for one in (max(knot - 1, 0), knot + 1):
            change = np.abs(np.subtract(cycle(one), cycle(knot)))
            assert np.all(change < 3e-11)  # π²/4·(1/300000)² = 2.7e-11; a line would move 3e-6
    steepest = cycle(150_001)[0] - cycle(150_000)[0]
    assert steepest == pytest.approx(0.96 * math.pi / 2 / 300_000, rel=1e-8)


def test_one_cycle_moves_both_values_by_the_same_share():
    cycle = bind(ref.one_cycle, peak_value=0.1, total_steps=40, peak_fraction=0.35)
    rate, momentum = np.array(at(cycle, *range(41))).T
    rising = np.arange(41) <= 14
    bottom = np.where(rising, 0.1 / 25, 0.1 / 1e4)
    np.testing.assert_allclose(
        (rate - bottom) / (0.1 - bottom), (0.95 - momentum) / 0.1, rtol=0, atol=1e-14
    )


# Compositions


def test_join_starts_each_schedule_at_its_own_boundary():
    counts = [lambda step, base=base: base + step for base in (0, 100, 200)]
    rate = bind(ref.join, schedules=counts, boundaries=[3, 5])
    assert at(rate, *range(8)) == [0, 1, 2, 100, 101, 200, 201, 202]
    assert rate(FAR) == 200 + FAR - 5
    skipped = bind(ref.join, schedules=counts, boundaries=[3, 3])
    assert at(skipped, 2, 3, 4) == [2, 200, 201]
    assert ref.join(6, schedules=counts[:1], boundaries=()) == 6


def test_scale_multiplies_and_clamp_bounds():
    line = bind(ref.linear, init_value=1.0, end_value=0.0, transition_steps=4)
    assert at(bind(ref.scale, schedule=line, factor=3), *range(6)) == [3, 2.25, 1.5, 0.75, 0, 0]
    kept = bind(ref.clamp, schedule=line, min_value=0.3, max_value=0.6)
    assert at(kept, *range(6)) == [0.6, 0.6, 0.5, 0.3, 0.3, 0.3]


def test_compositions_nest():
    decay = bind(ref.cosine, init_value=0.1, decay_steps=90)
    warm = bind(ref.warmup, schedule=decay, warmup_steps=10)
    rate = bind(ref.clamp, schedule=bind(ref.scale, schedule=warm, factor=2), min_value=0.05)
    rate = bind(rate, max_value=1.0)
    assert at(rate, 0, 5, 10, 100) == pytest.approx([0.05, 0.1, 0.2, 0.05], **EXACT)


# What holds for every schedule

EVERY = {  # (schedule, its knots)
    "step_decay": (bind(ref.step_decay, init_value=0.3, factor=0.1, every=10), (10, 20)),
    "multistep": (bind(ref.multistep, init_value=0.3, factor=0.1, milestones=(5, 9)), (5, 9)),
    "exponential": (bind(ref.exponential, init_value=0.3, decay_rate=0.01), ()),
    "polynomial": (
        bind(ref.polynomial, init_value=0.3, end_value=0.1, power=3.0, transition_steps=1000),
        (1000,),
    ),
    "inverse_sqrt": (bind(ref.inverse_sqrt, value=0.3), ()),
    "inverse_sqrt-warmup": (bind(ref.inverse_sqrt, value=0.3, warmup_steps=1000), (1000,)),
    "warmup": (
        bind(
            ref.warmup,
            schedule=bind(ref.exponential, init_value=0.3, decay_rate=1e-3),
            warmup_steps=1000,
        ),
        (1000,),
    ),
    "triangular": (
        bind(ref.triangular, min_value=0.1, max_value=0.3, half_cycle_steps=1000, form="halving"),
        (1000, 2000, 3000, 4000),
    ),
    "cosine_restarts": (
        bind(ref.cosine_restarts, init_value=0.3, decay_steps=1000, cycle_factor=1.5, num_cycles=2),
        (1000, 2500),
    ),
    **{
        f"wsd-{shape}": (
            bind(
                ref.wsd,
                peak_value=0.3,
                warmup_steps=1000,
                stable_steps=500,
                decay_steps=1000,
                shape=shape,
            ),
            (1000, 1500, 2500),
        )
        for shape in ("linear", "cosine", "sqrt")
    },
    "one_cycle-rate": (
        lambda step: ref.one_cycle(step, peak_value=0.3, total_steps=3333)[0],
        (999, 1000, 3333),
    ),
    "one_cycle-momentum": (
        lambda step: ref.one_cycle(step, peak_value=0.3, total_steps=3333)[1],
        (999, 1000, 3333),
    ),
    "join": (
        bind(
            ref.join,
            schedules=[
                bind(ref.linear, init_value=0.0, end_value=0.3, transition_steps=1000),
                bind(ref.cosine, init_value=0.3, decay_steps=1000),
            ],
            boundaries=[1000],
        ),
        (1000, 2000),
    ),
}


@pytest.mark.parametrize("case", EVERY)
def test_values_are_finite_floats_at_every_step(case):
    schedule, knots = EVERY[case]
    steps = {0, 1, 2**24 + 1, FAR - 1, FAR} | {k + d for k in knots for d in (-1, 0, 1)}
    for step in steps:
        value = schedule(step)
        assert isinstance(value, float)
        assert math.isfinite(value)
        assert value >= 0
        assert schedule(np.int32(step)) == schedule(np.int64(step)) == value


JUMPING = {"step_decay", "multistep", "cosine_restarts"}
CONTINUOUS = [case for case in EVERY if EVERY[case][1] and case not in JUMPING]


@pytest.mark.parametrize("case", CONTINUOUS)
def test_values_do_not_jump_at_the_knots(case):
    schedule, knots = EVERY[case]
    line = 0.3 / 1000  # per step; the cosines and the cube are flatter than it at their knots
    for knot in knots:
        before, here, after = at(schedule, knot - 1, knot, knot + 1)
        assert abs(here - before) < line * (1 + 1e-9)
        if case == "wsd-sqrt" and knot == 1500:  # 1 − √x leaves with an infinite slope
            assert here - after == pytest.approx(0.3 / math.sqrt(1000), rel=1e-13)
        else:
            assert abs(after - here) < line * (1 + 1e-9)


def test_arguments_after_the_step_are_keywords_and_nothing_given_is_changed():
    milestones, boundaries = [2, 5], [3]
    schedules = [bind(ref.constant, value=1), bind(ref.constant, value=2)]
    ref.multistep(4, init_value=1.0, factor=0.5, milestones=milestones)
    ref.join(4, schedules=schedules, boundaries=boundaries)
    assert (milestones, boundaries, len(schedules)) == ([2, 5], [3], 2)
    with pytest.raises(TypeError, match="positional"):
        ref.step_decay(4, 1.0, 0.5, 2)


# Optax, in float64, where it has the same schedule


def sgdr(num_cycles):
    """Optax's restarts, cycle lengths and peaks written out: 8, 12, 18, … and 0.1 + 0.4·0.6^i."""
    return optax.sgdr_schedule(
        {
            "init_value": 0.1 + 0.4 * 0.6**i,  # no warm-up: not used
            "peak_value": 0.1 + 0.4 * 0.6**i,
            "warmup_steps": 0,
            "decay_steps": round(8 * 1.5**i),
            "end_value": 0.1,
        }
        for i in range(num_cycles)
    )


SAME = {
    "exponential": (
        bind(ref.exponential, init_value=0.3, decay_rate=0.05),
        lambda: optax.exponential_decay(0.3, 1, math.exp(-0.05)),
    ),
    "step_decay": (
        bind(ref.step_decay, init_value=0.3, factor=0.7, every=10),
        lambda: optax.exponential_decay(0.3, 10, 0.7, staircase=True),
    ),
    "multistep": (
        bind(ref.multistep, init_value=0.3, factor=0.1, milestones=[20, 45]),
        lambda: optax.piecewise_constant_schedule(0.3, {20: 0.1, 45: 0.1}),
    ),
    "polynomial": (
        bind(ref.polynomial, init_value=0.3, end_value=0.1, power=2.5, transition_steps=60),
        lambda: optax.polynomial_schedule(0.3, 0.1, 2.5, 60),
    ),
    "polynomial-upwards": (
        bind(ref.polynomial, init_value=0.1, end_value=0.3, power=0.5, transition_steps=60),
        lambda: optax.polynomial_schedule(0.1, 0.3, 0.5, 60),
    ),
    "warmup": (
        bind(
            ref.warmup,
            schedule=bind(ref.exponential, init_value=0.5, decay_rate=-math.log(0.97)),
            warmup_steps=12,
            init_value=0.1,
        ),
        lambda: optax.warmup_exponential_decay_schedule(0.1, 0.5, 12, 1, 0.97),
    ),
    "cosine_restarts": (
        bind(
            ref.cosine_restarts,
            init_value=0.5,
            decay_steps=8,
            end_value=0.1,
            cycle_factor=1.5,
            peak_factor=0.6,
            num_cycles=4,
        ),
        lambda: sgdr(4),
    ),
    "wsd": (
        bind(ref.wsd, peak_value=0.5, warmup_steps=10, stable_steps=20, decay_steps=30),
        lambda: optax.join_schedules(
            [
                optax.warmup_constant_schedule(0.0, 0.5, 10),
                optax.linear_schedule(0.5, 0.0, 30),
            ],
            [30],
        ),
    ),
    # Optax divides the initial rate, not the peak, by its last factor; p·T must be a whole number.
    "one_cycle": (
        lambda step: ref.one_cycle(
            step, peak_value=0.5, total_steps=64, peak_fraction=0.25, div_factor=20.0
        )[0],
        lambda: optax.cosine_onecycle_schedule(64, 0.5, 0.25, 20.0, 1e4 / 20),
    ),
    "join": (
        bind(
            ref.join,
            schedules=[
                bind(ref.linear, init_value=0.1, end_value=0.2, transition_steps=9),
                bind(ref.constant, value=0.7),
                bind(ref.exponential, init_value=0.5, decay_rate=0.1),
            ],
            boundaries=[9, 31],
        ),
        lambda: optax.join_schedules(
            [
                optax.linear_schedule(0.1, 0.2, 9),
                optax.constant_schedule(0.7),
                optax.exponential_decay(0.5, 1, math.exp(-0.1)),
            ],
            [9, 31],
        ),
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_schedules_agree_with_optax(case):
    ours, make = SAME[case]
    with jax.enable_x64(True):
        expected = jax.vmap(make())(jnp.arange(80))
        assert expected.dtype == jnp.float64
        # Optax's ½(1 + cos) is right to 1e-16 of the peak only.
        np.testing.assert_allclose(at(ours, *range(80)), expected, rtol=1e-12, atol=1e-16)
