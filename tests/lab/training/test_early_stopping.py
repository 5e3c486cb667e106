"""Early stopping: when it stops and why, what it keeps, and that it goes where arrays go."""

import copy
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from optlab.lab import EarlyStopping

NAN, INF = float("nan"), float("inf")
PARAMS = {"w": jnp.ones((2, 3), jnp.bfloat16), "b": None, "n": jnp.int32(7)}


def after(values, **options):
    """The stopper after these values, of which all are offered even once it has stopped."""
    stopper = EarlyStopping(**options)
    for value in values:
        stopper = stopper.update(value)
    return stopper


def reference(values, *, patience, min_delta=0.0, mode="min", stop_on_nonfinite=True):
    """Say in plain Python (stopped, best value, its check, checks, bad ones in a row)."""
    sign = 1 if mode == "min" else -1
    best, best_check, bad = INF, 0, 0
    for check, value in enumerate(values, start=1):
        value = sign * value
        if math.isfinite(value) and value < best - min_delta:
            best, best_check, bad = value, check, 0
        else:
            bad += 1
        if bad >= patience or (stop_on_nonfinite and not math.isfinite(value)):
            return True, sign * best, best_check, check, bad
    return False, sign * best, best_check, len(values), bad


def facts(stopper):
    names = ("should_stop", "best_value", "best_check", "num_checks", "num_bad")
    return tuple(np.asarray(getattr(stopper, name)).item() for name in names)


def assert_same(stopper, other):
    assert jax.tree.structure(stopper) == jax.tree.structure(other)
    for ours, theirs in zip(jax.tree.leaves(stopper), jax.tree.leaves(other), strict=True):
        assert (ours.dtype, ours.weak_type) == (theirs.dtype, theirs.weak_type)
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@jax.jit
def scanned(stopper, values):
    """Every stopper after the first, one behind the other; compiled once for a configuration."""

    def body(stopper, value):
        stopper = stopper.update(value)
        return stopper, stopper

    return lax.scan(body, stopper, values)


def test_it_stops_after_patience_checks_in_a_row_without_improvement():
    assert facts(after([0.9, 0.5, 0.6, 0.5])) == (False, 0.5, 2, 4, 2)
    stopper = after([0.9, 0.5, 0.6, 0.5, 0.75])
    assert facts(stopper) == (True, 0.5, 2, 5, 3)
    assert stopper.reason == "no improvement in 3 checks since check 2 (best 0.5)"


def test_an_improvement_begins_the_count_anew():
    assert facts(after([0.9, 1.0, 1.0, 0.8, 1.0, 1.0, 0.7, 1.0])) == (
        False,
        np.float32(0.7).item(),
        7,
        8,
        1,
    )


def test_mode_max_is_the_mirror_image():
    values = [0.1, 0.5, 0.25, 0.75, 0.5, 0.5, 0.5]
    lower = after([-value for value in values], min_delta=0.125)
    higher = after(values, min_delta=0.125, mode="max")
    assert facts(higher)[0] is True
    assert higher.best_value == -lower.best_value == 0.75
    assert facts(higher)[2:] == facts(lower)[2:]
    expected = "no improvement of more than 0.125 in 3 checks since check 4 (best 0.75)"
    assert higher.reason == expected


@pytest.mark.parametrize("mode", ["min", "max"])
def test_an_improvement_must_be_by_more_than_min_delta(mode):
    # Binary fractions, so that the comparison at the boundary is exact.
    step = -0.25 if mode == "min" else 0.25
    assert not after([1.0, 1.0 + step], mode=mode, min_delta=0.25).improved
    assert after([1.0, 1.0 + step * 1.125], mode=mode, min_delta=0.25).improved
    assert not after([1.0, 1.0], mode=mode).improved


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("value", [1e30, -1e30, 0.0])
def test_the_first_finite_value_always_improves(mode, value):
    stopper = after([value], mode=mode, min_delta=1e6)
    assert stopper.improved
    assert facts(stopper)[1:] == (np.float32(value).item(), 1, 1, 0)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_value_that_is_not_finite_stops_at_once(mode, value):
    stopper = after([0.5, value], mode=mode)
    assert facts(stopper) == (True, 0.5, 1, 2, 1)
    assert not stopper.improved
    assert stopper.reason == f"the value was not finite ({value}) at check 2"


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_or_counts_as_a_check_without_improvement(value):
    options = {"patience": 2, "stop_on_nonfinite": False}
    assert facts(after([value, 0.5, value], **options)) == (False, 0.5, 2, 3, 1)
    stopper = after([value, 0.5, value, 0.75], **options)
    assert stopper.reason == "no improvement in 2 checks since check 2 (best 0.5)"
    assert after([value] * 2, **options).reason == "no finite value in 2 checks"
    assert (
        after([value], patience=1, stop_on_nonfinite=False).reason == "no finite value in 1 check"
    )


def test_the_reason_names_the_value_where_patience_ends_with_it():
    assert after([0.5, NAN], patience=1).reason == "the value was not finite (nan) at check 2"


def test_before_the_first_check_nothing_is_decided():
    stopper = EarlyStopping()
    assert facts(stopper) == (False, INF, 0, 0, 0)
    assert EarlyStopping(mode="max").best_value == -INF
    assert not stopper.improved
    assert stopper.reason is None


def test_once_stopped_it_never_changes():
    stopped = after([0.5, NAN])
    for value in (0.1, NAN, -INF):
        assert_same(stopped.update(value), stopped)
    patient = after([0.5, 1.0, 1.0, 1.0])
    assert_same(patient.update(0.1), patient)


def test_update_returns_a_new_one_and_leaves_the_old():
    old = EarlyStopping()
    new = old.update(0.5)
    assert facts(old) == (False, INF, 0, 0, 0)
    assert facts(new) == (False, 0.5, 1, 1, 0)
    with pytest.raises(AttributeError):
        new.patience = 5


def test_it_agrees_with_plain_python_on_random_values():
    rng = np.random.default_rng(0)
    for mode in ("min", "max"):
        for stop_on_nonfinite in (True, False):
            options = {"patience": 2, "min_delta": 0.25, "mode": mode}
            options["stop_on_nonfinite"] = stop_on_nonfinite
            start = EarlyStopping(**options)
            for _ in range(25):
                values = rng.integers(-4, 5, size=12) / 4
                values[rng.random(12) < 0.1] = rng.choice([NAN, INF, -INF])
                last, _ = scanned(start, values.astype(np.float32))
                assert facts(last) == reference(values.tolist(), **options)


def test_scan_keeps_structure_and_types_and_equals_a_loop():
    values = [0.9, 0.5, 0.75, 0.625, 0.25, 0.5]
    start = EarlyStopping(patience=2, min_delta=0.125)
    last, every = scanned(start, jnp.array(values))
    assert jax.tree.structure(start) == jax.tree.structure(last)
    loop = start
    for index, value in enumerate(values):
        loop = loop.update(value)
        assert_same(jax.tree.map(lambda x, index=index: x[index], every), loop)
    assert_same(last, loop)
    assert last.reason == "no improvement of more than 0.125 in 2 checks since check 2 (best 0.5)"
    assert facts(last)[3] == 4  # and 0.25, which came after, is not looked at


def test_lanes_of_vmap_stop_each_on_its_own():
    values = jnp.array([[0.5, 0.4, 0.3, 0.2], [0.5, 0.6, 0.7, 0.1], [0.5, NAN, 0.1, 0.1]])

    @jax.jit
    @jax.vmap
    def lanes(params, values):
        def body(stopper, value):
            return stopper.update(value, params * value), ()

        return lax.scan(body, EarlyStopping(patience=2, best_params=params), values)[0]

    stoppers = lanes(jnp.ones((3, 2)), values)
    assert stoppers.should_stop.tolist() == [False, True, True]
    assert stoppers.best_check.tolist() == [4, 1, 1]
    assert stoppers.num_checks.tolist() == [4, 3, 2]
    np.testing.assert_allclose(stoppers.best_params[:, 0], [0.2, 0.5, 0.5])
    reasons = [jax.tree.map(lambda x, lane=lane: x[lane], stoppers).reason for lane in range(3)]
    assert reasons == [
        None,
        "no improvement in 2 checks since check 1 (best 0.5)",
        "the value was not finite (nan) at check 2",
    ]
    with pytest.raises(ValueError, match=r"reason must be that of one stopper, got lanes of shape"):
        _ = stoppers.reason


def test_it_ends_a_while_loop():
    def advance(carry):
        step, stopper = carry
        return step + 1, stopper.update(jnp.abs(step - 5.0))

    start = (jnp.int32(0), EarlyStopping(patience=3))
    step, stopper = lax.while_loop(lambda carry: ~carry[1].should_stop, advance, start)
    assert (int(step), int(stopper.best_check)) == (9, 6)


def test_the_best_parameters_are_those_of_the_best_check_in_their_own_types():
    stopper = EarlyStopping(best_params=PARAMS)
    for value in (0.5, 0.25, 0.75):
        params = {"w": jnp.full((2, 3), value), "b": None, "n": 100 * value}
        stopper = stopper.update(value, params)
    assert stopper.best_params["w"].dtype == jnp.bfloat16
    assert stopper.best_params["n"].dtype == jnp.int32
    np.testing.assert_array_equal(stopper.best_params["w"].astype(float), np.full((2, 3), 0.25))
    assert (stopper.best_params["b"], int(stopper.best_params["n"])) == (None, 25)
    assert not stopper.improved


def test_the_best_parameters_begin_as_a_copy_of_those_given():
    host = np.ones(3, np.float32)
    given = {"host": host, "device": jnp.ones(3)}
    stopper = EarlyStopping(best_params=given)
    host[:] = 5
    given["device"].delete()  # as where a training step donates its buffers
    stopper = stopper.update(NAN, {"host": host, "device": jnp.zeros(3)})
    np.testing.assert_array_equal(stopper.best_params["host"], np.ones(3))
    np.testing.assert_array_equal(stopper.best_params["device"], np.ones(3))


def test_the_best_parameters_survive_the_donation_of_the_last():
    params = jnp.arange(3.0)
    stopper = EarlyStopping(best_params=params).update(0.5, params)
    params.delete()
    np.testing.assert_array_equal(stopper.best_params, np.arange(3.0))


def test_parameters_are_not_looked_at_where_none_are_kept():
    assert EarlyStopping().update(0.5, {"w": jnp.ones(3)}).best_params is None


@pytest.mark.parametrize("value", [1, np.int8(1), np.float16(1), jnp.bfloat16(1), np.float64(1)])
def test_any_real_scalar_is_a_value_and_types_stay_the_same(value):
    stopper = EarlyStopping().update(value)
    assert_same(stopper.update(NAN), EarlyStopping().update(1.0).update(NAN))


def test_values_are_double_where_x64_is_enabled():
    with jax.enable_x64(True):
        stopper = EarlyStopping().update(1.0).update(1.0 - 1e-12)
        assert stopper.best_value.dtype == jnp.float64
        assert stopper.improved


def test_it_survives_copies_and_pickling():
    stopper = EarlyStopping(best_params=PARAMS).update(0.5, PARAMS)
    for other in (copy.deepcopy(stopper), pickle.loads(pickle.dumps(stopper))):
        assert_same(other, stopper)
        assert_same(other.update(0.25, PARAMS), stopper.update(0.25, PARAMS))


def test_its_leaves_have_names():
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(EarlyStopping())]
    assert ".should_stop" in paths
    assert ".best_value" in paths


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "patience must be an integer >= 1, got patience=0"),
        ({"patience": 2.5}, "patience must be an integer >= 1, got patience=2.5"),
        ({"min_delta": -0.1}, "min_delta must be a number >= 0, got min_delta=-0.1"),
        ({"min_delta": NAN}, "min_delta must be a number >= 0, got min_delta=nan"),
        ({"min_delta": INF}, "min_delta must be a number >= 0, got min_delta=inf"),
        ({"min_delta": "small"}, "min_delta must be a number >= 0, got min_delta='small'"),
        ({"mode": "auto"}, "mode must be 'min' or 'max', got mode='auto'"),
        ({"stop_on_nonfinite": 1}, "stop_on_nonfinite must be True or False, got stop_on_nonf"),
    ],
)
def test_a_wrong_argument_is_told_at_construction(options, message):
    with pytest.raises(ValueError, match=f"^EarlyStopping: {message}"):
        EarlyStopping(**options)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            np.ones(2),
            r"value must be a real scalar, got shape \(2,\); map over lanes with jax.vmap",
        ),
        (None, "value must be a real scalar, got None"),
        ("0.5", "value must be a real scalar, got '0.5'"),
        (1j, "value must be a real scalar, got 1j"),
        (True, "value must be a real scalar, got True"),
    ],
)
def test_a_wrong_value_is_told(value, message):
    with pytest.raises(ValueError, match=f"^EarlyStopping: {message}"):
        EarlyStopping().update(value)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            None,
            "update must be given the parameters if best_params is set, got params=None; "
            "call update",
        ),
        ({"w": jnp.ones((2, 3))}, "params must have the structure of best_params, PyTreeDef"),
        (
            {"w": jnp.ones(3), "b": None, "n": 1},
            r"params\['w'\] must have the shape \(2, 3\) of best_params, got \(3,\)",
        ),
    ],
)
def test_wrong_parameters_are_told(params, message):
    with pytest.raises(ValueError, match=f"^EarlyStopping: {message}"):
        EarlyStopping(best_params=PARAMS).update(0.5, params)


def test_the_reason_of_a_traced_stopper_is_told_to_be_read_outside():
    with pytest.raises(ValueError, match="reason must be read outside of jit, scan and vmap"):
        jax.eval_shape(lambda stopper: stopper.reason, EarlyStopping())


def test_a_whole_number_of_checks_may_be_a_float():
    stopper = EarlyStopping(patience=np.float64(2))
    assert stopper.patience == 2
    assert jax.tree.structure(stopper) == jax.tree.structure(EarlyStopping(patience=2))


def test_it_runs_where_jax_raises_at_a_nan():
    with jax.debug_nans(True):
        stopper = after([0.9, 0.5, 0.6, 0.5, 0.75])
        fresh = EarlyStopping()
    assert facts(stopper) == (True, 0.5, 2, 5, 3)
    assert (float(fresh.last_value), int(fresh.num_checks)) == (0.0, 0)


# Where it starts, and limits


def fed(stopper, values, update=EarlyStopping.update):
    """Feed values, each ten updates after the one before it, until it stops."""
    for check, value in enumerate(values):
        stopper = update(stopper, value, step=10 * check)
        if stopper.should_stop:
            break
    return stopper


def test_checks_before_the_start_count_for_nothing():
    values = [1.0, 5.0, 6.0, 7.0, 3.0, 4.0, 4.0]
    stopper = fed(EarlyStopping(2, start=30), values, jax.jit(EarlyStopping.update))
    # The first check is that of 30 updates, and 3.0 the best one since.
    assert (int(stopper.num_checks), int(stopper.best_check)) == (4, 2)
    assert stopper.best_value == 3.0
    assert stopper.reason == "no improvement in 2 checks since check 2 (best 3)"


def test_a_value_before_the_start_that_is_not_finite_stops():
    assert fed(EarlyStopping(2, start=30), [1.0, np.nan]).reason.startswith("the value was not fin")


def test_the_updates_must_be_told_if_there_is_a_start():
    with pytest.raises(ValueError, match=r"^EarlyStopping: update must be given the updates done"):
        EarlyStopping(2, start=30).update(1.0)


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_it_stops_at_the_target_and_keeps_what_reached_it(mode, sign):
    stopper = EarlyStopping(5, mode=mode, target=sign * 1.0, min_delta=1.0, best_params=0.0)
    for value in (1.5, 0.9):
        stopper = stopper.update(sign * value, value)
    assert stopper.should_stop
    assert stopper.best_params == np.float32(0.9)
    number = f"{sign * 0.9:.6g}"
    assert stopper.reason == f"the value reached the target {sign} at check 2 ({number})"


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_it_stops_at_a_value_worse_than_that_of_divergence(mode, sign):
    stopper = EarlyStopping(5, mode=mode, divergence=sign * 2.0)
    assert not stopper.update(sign * 2.0).should_stop
    stopper = stopper.update(sign * 1.0).update(sign * 2.5)
    assert stopper.reason == f"the value was worse than {sign * 2} at check 2 ({sign * 2.5})"
    assert stopper.best_value == sign * 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": -1}, "start must be an integer >= 0, got start=-1"),
        ({"target": "low"}, "target must be a number or None, got target='low'"),
        ({"divergence": np.nan}, "divergence must be finite, got divergence=nan"),
        ({"target": 2, "divergence": 1}, "target must be below divergence=1, as mode='min'"),
        (
            {"target": 1, "divergence": 2, "mode": "max"},
            "target must be above divergence=2, as mode='max'",
        ),
    ],
)
def test_limits_must_be_in_order(options, message):
    with pytest.raises(ValueError, match=f"^EarlyStopping: {message}"):
        EarlyStopping(2, **options)
