"""Averages of the parameters: their weights by hand, as recorded from others, and read anywhere."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import optlab
from golden import record_averages
from optlab.transforms._reconstruction import weights_of_profiles

ULP = float(np.finfo(np.float32).eps)


def averages_of(transformations, trajectory, start=None):
    """Return each transformation's state after every one of the parameters, stacked, from one scan.

    The parameters are 0 before each update and those of the trajectory after it.
    """
    zeros = jax.tree.map(lambda x: np.zeros_like(x[0]), trajectory)
    first = zeros if start is None else start

    def body(states, params):
        states = {
            name: tx.update(params, states[name], zeros)[1] for name, tx in transformations.items()
        }
        return states, states

    states = {name: tx.init(first) for name, tx in transformations.items()}
    return jax.jit(lambda s, x: jax.lax.scan(body, s, x)[1])(states, trajectory)


def at(states, t):
    """Return a state after update t."""
    return jax.tree.map(lambda x: x[t - 1], states)


# The weights of θ₁ … θ₄, as the average of four unit vectors shows them.
WEIGHTS = {
    "all": (optlab.params_average(), [1 / 4] * 4),
    "after two": (optlab.params_average(start=2), [0, 0, 1 / 2, 1 / 2]),
    "every other": (optlab.params_average(start=1, every=2), [0, 1 / 2, 0, 1 / 2]),
    "the last": (optlab.params_average(start=3), [0, 0, 0, 1]),
    "latest two": (optlab.params_lawa(2, every=1), [0, 0, 1 / 2, 1 / 2]),
    "latest of few": (optlab.params_lawa(6, every=2), [0, 1 / 2, 0, 1 / 2]),
    "latest at three": (optlab.params_lawa(2, every=3), [0, 0, 1, 0]),
    "power 0": (optlab.params_power_ema(gamma=0), [1 / 4] * 4),
    "power 1": (optlab.params_power_ema(gamma=1), [1 / 16, 3 / 16, 5 / 16, 7 / 16]),
    "power 3": (optlab.params_power_ema(gamma=3), [1 / 256, 15 / 256, 65 / 256, 175 / 256]),
    "widest": (optlab.params_power_ema(12**-0.5), [1 / 4] * 4),
    "moving": (optlab.params_ema(0.5), [1 / 16, 1 / 8, 1 / 4, 1 / 2]),
    # Decays 0, 2/11, 3/12, then 4/13 held at 0.3.
    "diffusers": (
        optlab.params_ema(0.3, warmup="diffusers"),
        [2 / 11 * 0.25 * 0.3, 9 / 11 * 0.25 * 0.3, 0.75 * 0.3, 0.7],
    ),
    # 1/t: the plain mean.
    "a function that leaves [0, 1]": (
        optlab.params_ema(0.5, warmup=lambda t: jnp.where(t == 3, 2.0, 1.0 - t)),
        [0, 0, 0, 1],
    ),
    "a function": (optlab.params_ema(0.9, warmup=lambda t: 1 - 1 / t), [1 / 4] * 4),
}


@pytest.fixture(scope="module")
def of_unit_vectors():
    return averages_of({name: tx for name, (tx, _) in WEIGHTS.items()}, np.eye(4, dtype=np.float32))


@pytest.mark.parametrize("name", WEIGHTS)
def test_each_of_four_parameters_has_its_weight(name, of_unit_vectors):
    average = optlab.averaged_params(at(of_unit_vectors[name], 4))
    np.testing.assert_allclose(average, WEIGHTS[name][1], rtol=4 * ULP, atol=0)


def test_timms_warm_up_is_a_power_of_two_thirds():
    params = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    kinds = {"named": {"warmup": "timm"}, "power": {"warmup_power": 2 / 3}}
    kinds = {name: optlab.params_ema(0.7, **options) for name, options in kinds.items()}
    states = averages_of(kinds, params)
    np.testing.assert_array_equal(states["named"].average, states["power"].average)


def test_a_share_far_into_a_run_keeps_its_digits():
    # 1 − (1 − 1/t)^(γ+1) in float32 is off by 19% here.
    t, gamma = 10**7, 16.97
    tx = optlab.params_power_ema(gamma=gamma)
    state = tx.init(jnp.zeros(()))._replace(step=jnp.int32(t - 1))
    _, state = tx.update(jnp.ones(()), state, jnp.zeros(()))
    share = -np.expm1((gamma + 1) * np.log1p(-1 / t))
    np.testing.assert_allclose(optlab.averaged_params(state), share, rtol=2 * ULP)


def test_several_widths_are_averaged_as_each_alone():
    params = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
    widths = (0.05, 0.2, 0.1)
    kinds = {str(width): optlab.params_power_ema(width) for width in widths}
    states = averages_of({"all": optlab.params_power_ema(widths), **kinds}, params)
    for width in widths:
        own = optlab.averaged_params(at(states["all"], 20), width=width)
        np.testing.assert_array_equal(own, optlab.averaged_params(at(states[str(width)], 20)))


def test_what_comes_before_the_start_leaves_no_trace():
    params = np.array([[np.nan], [np.inf], [3.0], [5.0]], np.float32)
    kinds = {
        "mean": optlab.params_average(start=2),
        "latest": optlab.params_lawa(2, every=3),
    }
    states = averages_of(kinds, params)
    assert float(optlab.averaged_params(at(states["mean"], 4))[0]) == 4.0
    assert float(optlab.averaged_params(at(states["latest"], 4))[0]) == 3.0


# As recorded


RECORDED = {
    "AveragedModel": optlab.params_average(),
    # The first call copies.
    "AveragedModel-ema": optlab.params_ema(
        record_averages.DECAY, warmup=lambda t: jnp.where(t > 1, 1.0, 0.0)
    ),
    "ModelEmaV3": optlab.params_ema(record_averages.DECAY),
    "ModelEmaV3-warmup": optlab.params_ema(record_averages.LONG_DECAY, warmup="timm"),
}


@pytest.fixture(scope="module")
def recorded():
    with np.load(record_averages.RECORDED) as file:
        return dict(file)


def test_averages_are_pytorchs_and_timms(recorded):
    path = record_averages.trajectory()
    start, after = ({k: x[part] for k, x in path.items()} for part in (0, slice(1, None)))
    with jax.enable_x64(True):
        states = averages_of(RECORDED, after, start)
    for case, state in states.items():
        for name, average in state.average.items():
            # A few roundings of float64 an update.
            wanted = recorded[f"{case}/{name}"]
            np.testing.assert_allclose(average, wanted, rtol=0, atol=1e-14 * np.abs(wanted).max())


@pytest.mark.parametrize(("strategy", "form"), [("cos", "cosine"), ("linear", "linear")])
def test_the_rates_of_two_groups_are_those_of_swalr(strategy, form, recorded):
    r = record_averages
    with jax.enable_x64(True):
        for group, (rate, swa_rate) in enumerate(zip(r.RATES, r.SWA_RATES, strict=True)):
            before = optlab.schedules.exponential(rate, -np.log(r.FACTOR))
            schedule = optlab.schedules.swa_schedule(before, swa_rate, r.START, r.ANNEAL, form)
            got = jax.vmap(schedule)(jnp.arange(r.EPOCHS))
            # PyTorch forms each rate from the one before, with a few roundings.
            np.testing.assert_allclose(got, recorded[f"SWALR-{strategy}"][:, group], rtol=1e-14)


def test_the_papers_rates_are_halved_before_the_average_starts():
    # The published code's defaults: 200 epochs, start 161, 0.1 and 0.05.
    s = optlab.schedules
    schedule = s.swa_schedule(s.constant(0.1), 0.05, 161, form="paper")
    rates = [float(schedule(epoch)) for epoch in (0, 80, 81, 112, 144, 145, 161)]
    line = [0.1 - 0.05 * (epoch - 80.5) / 64.4 for epoch in (81, 112, 144)]
    np.testing.assert_allclose(rates, [0.1, 0.1, *line, 0.05, 0.05], rtol=4 * ULP)


@pytest.mark.parametrize("name", ["swa_value", "peak_value"])
def test_a_rate_below_0_is_refused(name):
    options = {"swa_value": 0.1, "peak_value": 0.2, name: -0.02}
    with pytest.raises(ValueError, match=f"^swa_schedule: {name} must be .*>= 0, got {name}=-0.02"):
        optlab.schedules.swa_schedule(
            optlab.schedules.constant(0.1), start_step=4, form="cyclic", cycle_steps=2, **options
        )


def test_an_average_of_cycles_takes_the_parameters_after_each_minimum():
    s = optlab.schedules
    start, cycle = 4, 3
    schedule = s.swa_schedule(
        s.constant(1.0), 0.25, start, form="cyclic", cycle_steps=cycle, peak_value=1.0
    )
    tx = optax.chain(optlab.sgd(schedule), optlab.params_average(start + cycle - 1, cycle))
    params, rates = jnp.zeros(()), []
    state = tx.init(params)
    for step in range(12):
        _, new = tx.update(jnp.ones(()), state, params)
        if new[1].num_averaged > state[1].num_averaged:
            rates.append(float(schedule(step)))
        state = new
    assert rates == [0.25, 0.25]


# Reading


PARAMS = {"w": jnp.full((2, 3), 0.5, jnp.bfloat16), "b": jnp.arange(3.0)}
KINDS = {
    "params_average": optlab.params_average(),
    "params_power_ema": optlab.params_power_ema(0.1),
    "params_lawa": optlab.params_lawa(3, every=1),
}


@pytest.mark.parametrize("name", KINDS)
def test_an_average_of_nothing_is_refused_where_it_can_be_seen(name):
    state = KINDS[name].init(PARAMS)
    message = f"averaged_params: {name} must have averaged the parameters of an update, got none"
    with pytest.raises(ValueError, match=message):
        optlab.averaged_params(state)
    traced = jax.jit(optlab.averaged_params)(state)
    np.testing.assert_array_equal(traced["b"], PARAMS["b"])


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_read_like_params_ema(name):
    params = jax.tree.map(jnp.copy, PARAMS)
    tx = optax.masked(KINDS[name], {"w": True, "b": False})
    _, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    average = optlab.averaged_params(state)
    assert average["w"].dtype == jnp.float32
    assert average["b"] == optax.MaskedNode()
    np.testing.assert_array_equal(average["w"], 1.5)
    filled = optlab.averaged_params(state, params)
    assert {k: x.dtype for k, x in filled.items()} == {k: x.dtype for k, x in params.items()}
    jax.jit(lambda s, p: (s, p), donate_argnums=(0, 1))(state, params)
    np.testing.assert_array_equal(filled["w"], jnp.bfloat16(1.5))
    np.testing.assert_array_equal(filled["b"], PARAMS["b"])


@pytest.mark.parametrize("name", KINDS)
def test_averages_of_a_batch_of_runs_are_read_at_once(name):
    tx = KINDS[name]
    params = jnp.arange(6.0).reshape(2, 3)
    states = jax.vmap(tx.init)(params)
    _, states = jax.vmap(tx.update)(params, states, params)
    np.testing.assert_array_equal(optlab.averaged_params(states), 2 * params)


def test_averages_are_read_from_an_nnx_optimizer():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))  # its bias starts at 0
    tx = optax.chain(optlab.sgd(1.0), KINDS["params_lawa"])
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(2):
        optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    average = optlab.averaged_params(optimizer.opt_state)
    # The bias was −1 and then −2.
    np.testing.assert_array_equal(average["bias"][...], -1.5)


def test_a_width_chooses_among_several():
    tx = optlab.params_power_ema((0.05, 0.1))
    _, state = tx.update(jnp.ones(()), tx.init(jnp.zeros(())), jnp.zeros(()))
    assert float(optlab.averaged_params(state, width=0.1)) == 1.0
    choice = r"averaged_params: width must be one of 0.05, 0.1, got width="
    with pytest.raises(ValueError, match=f"^{choice}None$"):
        optlab.averaged_params(state)
    with pytest.raises(ValueError, match=f"^{choice}0.07; optlab.reconstruct makes averages"):
        optlab.averaged_params(state, width=0.07)
    for width, got in ((np.nan, "nan"), (".05", "'.05'"), (0.5, "0.5")):
        message = f"^averaged_params: width must be .*, got width={got}$"
        with pytest.raises(ValueError, match=message):
            optlab.averaged_params(state, width=width)
    one = optlab.params_average()
    _, state = one.update(jnp.ones(()), one.init(jnp.zeros(())), jnp.zeros(()))
    with pytest.raises(ValueError, match="width must be left out but for params_power_ema, got"):
        optlab.averaged_params(state, width=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optlab.params_power_ema(gamma=-0.5), "gamma must be finite and >= 0"),
        (
            lambda: optlab.params_power_ema((0.1, 0.2), gamma=1.0),
            "one of sigma_rel and gamma must be given, got both",
        ),
    ],
)
def test_bad_exponents_are_refused(make, message):
    with pytest.raises(ValueError, match=f"^params_power_ema: {message}"):
        make()


# Reconstruction


UPDATES, EVERY = 64, 8
WIDTHS = (0.05, 0.10)


@pytest.fixture(scope="module")
def run():
    """Averages of unit vectors, which are the weights: snapshots of two widths, and a third one."""
    kinds = {"two": optlab.params_power_ema(WIDTHS), "third": optlab.params_power_ema(0.15)}
    states = averages_of(kinds, {"w": np.eye(UPDATES, dtype=np.float32)})
    snapshots = [
        optlab.power_ema_snapshot(at(states["two"], t)) for t in range(EVERY, UPDATES + 1, EVERY)
    ]
    return snapshots, at(states["two"], UPDATES), at(states["third"], UPDATES)


def test_a_width_that_is_kept_is_reconstructed_as_it_is(run):
    snapshots, state, _ = run
    for width in WIDTHS:
        average = optlab.reconstruct(snapshots, width)
        # The other weights are roundings of float64, times the condition number of 500.
        own = optlab.averaged_params(state, width=width)
        np.testing.assert_allclose(average["w"], own["w"], rtol=0, atol=1e-7)
        assert optlab.reconstruction_error(snapshots, width) < 1e-7


def test_another_width_is_reconstructed_with_the_error_that_is_told(run):
    snapshots, _, third = run
    want = optlab.averaged_params(third)["w"]
    got = optlab.reconstruct(snapshots, 0.15)["w"]
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    told = optlab.reconstruction_error(snapshots, 0.15)
    assert told == pytest.approx(0.0333, abs=5e-5)
    # The profile is that of a long run; 64 updates differ from it by a few percent of the error.
    assert error == pytest.approx(told, rel=0.1)


def test_later_snapshots_are_left_out(run):
    snapshots, _, _ = run
    early = optlab.reconstruct(snapshots[::-1], 0.07, step=32)
    np.testing.assert_array_equal(early["w"], optlab.reconstruct(snapshots[:4], 0.07)["w"])
    assert not early["w"][32:].any()


def test_a_snapshot_survives_the_state_and_a_checkpoint(run):
    tx = optlab.params_power_ema(WIDTHS)
    update = jax.jit(tx.update, donate_argnums=1)
    _, state = update(jnp.ones(2), tx.init(jnp.zeros(2)), jnp.zeros(2))
    snapshot = optlab.power_ema_snapshot(state)
    update(jnp.ones(2), state, jnp.zeros(2))
    restored = pickle.loads(pickle.dumps(snapshot))
    np.testing.assert_array_equal(optlab.reconstruct([restored], 0.1), 1.0)
    np.testing.assert_allclose(restored.gammas, [16.9722, 6.9372], atol=5e-5)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (
            lambda s: optlab.reconstruct(s[-1:], 0.2),
            r"reconstruct: snapshots must give the average of sigma_rel=0.2 with a relative error "
            r"of at most 0.1, got 0.\d+ from 1 at steps 64 \(too few or ill-placed snapshots\); ",
        ),
        (lambda s: optlab.reconstruct([], 0.1), "reconstruct: there must be at least one snapshot"),
        (
            lambda s: optlab.reconstruct(s[:2], 0.1, step=12),
            "reconstruct: step must be that of a snapshot, got step=12; steps 8, 16",
        ),
        (
            lambda s: optlab.reconstruction_error(s, 0.3),
            r"reconstruction_error: sigma_rel must be in \(0, 1/√12\], got sigma_rel=0.3",
        ),
        (
            lambda s: optlab.reconstruct([s[0].averages], 0.1),
            "reconstruct: snapshots must be those of power_ema_snapshot, got tuple",
        ),
        (
            lambda s: optlab.reconstruct(s[0], 0.1),
            r"reconstruct: snapshots must be a list of them, got one Power.*; pass \[snapshot\]",
        ),
        (
            lambda s: optlab.reconstruct([s[0], jax.tree.map(jnp.atleast_1d, s[1])], 0.1),
            r"reconstruct: a snapshot must be that of one run, got one of a batch .* \(1,\); ",
        ),
        (
            lambda s: optlab.reconstruct([s[0], s[1]._replace(averages=(jnp.ones(2),) * 2)], 0.1),
            r"reconstruct: snapshots must be those of one model, got nothing and \(64,\) at "
            r"\['w'\], \(2,\) and nothing at the root",
        ),
        (
            lambda s: optlab.power_ema_snapshot(optlab.params_power_ema().init(jnp.ones(2))),
            "power_ema_snapshot: params_power_ema must have averaged the parameters of an update",
        ),
        (
            lambda s: optlab.power_ema_snapshot(optlab.params_ema(0.9).init(jnp.ones(2))),
            "power_ema_snapshot: the state must hold a params_power_ema, got ParamsEmaState; put",
        ),
    ],
)
def test_a_reconstruction_that_cannot_be_is_refused(mistake, message, run):
    with pytest.raises(ValueError, match=f"^{message}"):
        mistake(run[0])


def test_two_widths_at_one_time_give_the_published_weights():
    gammas = np.array([optlab.reference.power_ema_gamma(width) for width in WIDTHS])
    gamma = optlab.reference.power_ema_gamma(0.07)
    weights, _ = weights_of_profiles(np.ones(2), gammas, gamma)
    np.testing.assert_allclose(weights, [0.43832, 0.56168], atol=5e-6)


@pytest.mark.parametrize(
    ("number", "errors"),
    [
        (2, (0.23, 0.055, 0.22, 0.47)),
        (8, (0.10, 0.013, 0.033, 0.078)),
        (32, (0.011, 0.001, 0.002, 0.0065)),
    ],
)
def test_errors_are_those_of_the_table(number, errors):
    gamma_of = optlab.reference.power_ema_gamma
    times = np.repeat(np.arange(1, number + 1) / number, 2)
    gammas = np.tile([gamma_of(width) for width in WIDTHS], number)
    for width, error in zip((0.03, 0.07, 0.15, 0.20), errors, strict=True):
        _, told = weights_of_profiles(times, gammas, gamma_of(width))
        # The table has two digits, of the smallest errors one.
        assert told == pytest.approx(error, rel=0.04, abs=5e-4)
