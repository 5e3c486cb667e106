"""Dialects beyond recorded trajectories: TensorFlow 1's kernels, states carried over, errors."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from golden import problems, store
from golden.cases import CASES
from golden.replay import transformation
from optlab import dialects
from optlab.dialects import _table

# TensorFlow 1.15's kernels (training_ops.cc), written out in float64 for one array: functions of
# (variable, gradient, slots, number of the update, rate) that return the variable and the slots.


def tf_gradient_descent(var, g, slots, t, lr):
    return var - lr * g, slots


def tf_momentum(var, g, slots, t, lr, *, momentum, use_nesterov=False):
    accum = momentum * slots.get("accum", 0.0) + g
    step = lr * g + lr * momentum * accum if use_nesterov else lr * accum
    return var - step, {"accum": accum}


def tf_adagrad(var, g, slots, t, lr, *, initial_accumulator_value=0.1):
    accum = slots.get("accum", initial_accumulator_value) + g * g
    return var - lr * g / np.sqrt(accum), {"accum": accum}


def tf_rmsprop(var, g, slots, t, lr, *, decay=0.9, momentum=0.0, epsilon=1e-10, centered=False):
    ms, mom, mg = slots.get("ms", 1.0), slots.get("mom", 0.0), slots.get("mg", 0.0)
    ms = ms + (g * g - ms) * (1 - decay)
    denominator = ms + epsilon
    if centered:
        mg = mg + (g - mg) * (1 - decay)
        denominator = ms - mg * mg + epsilon
    mom = mom * momentum + lr * g / np.sqrt(denominator)
    return var - mom, {"ms": ms, "mom": mom, "mg": mg}


def tf_adam(var, g, slots, t, lr, *, beta1=0.9, beta2=0.999, epsilon=1e-8):
    m, v = slots.get("m", 0.0), slots.get("v", 0.0)
    m = m + (g - m) * (1 - beta1)
    v = v + (g * g - v) * (1 - beta2)
    lr_t = lr * np.sqrt(1 - beta2**t) / (1 - beta1**t)
    return var - lr_t * m / (np.sqrt(v) + epsilon), {"m": m, "v": v}


def tf_adamw(var, g, slots, t, lr, *, weight_decay, **adam):
    """The extension of tf.contrib: the decay comes first, and has no rate."""
    return tf_adam(var - weight_decay * var, g, slots, t, lr, **adam)


TENSORFLOW1 = {
    "sgd": ("sgd", {}, tf_gradient_descent),
    "sgd-momentum": ("sgd", {"momentum": 0.9}, tf_momentum),
    "sgd-nesterov": ("sgd", {"momentum": 0.9, "use_nesterov": True}, tf_momentum),
    "adagrad": ("adagrad", {}, tf_adagrad),
    "adagrad-initial": ("adagrad", {"initial_accumulator_value": 1e-3}, tf_adagrad),
    "rmsprop": ("rmsprop", {}, tf_rmsprop),
    "rmsprop-epsilon": ("rmsprop", {"epsilon": 1e-2, "decay": 0.8}, tf_rmsprop),
    "rmsprop-momentum": ("rmsprop", {"momentum": 0.9}, tf_rmsprop),
    "rmsprop-centered": ("rmsprop", {"centered": True, "momentum": 0.5}, tf_rmsprop),
    "adam": ("adam", {}, tf_adam),
    "adam-epsilon": ("adam", {"epsilon": 1e-2, "beta1": 0.8, "beta2": 0.9}, tf_adam),
    "adamw": ("adamw", {"weight_decay": 0.01}, tf_adamw),
}


@pytest.mark.parametrize("name", TENSORFLOW1)
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float32", 1e-5)])
def test_tensorflow1_follows_its_kernels(name, dtype, rtol):
    """100 updates at gradients fixed beforehand; in float32 parameters gather a rounding each."""
    rule, options, kernel = TENSORFLOW1[name]
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(100, 8)).astype(np.float32) * np.logspace(-3, 2, 8)
    gradients[20:40, ::2] = 0.0
    gradients = gradients.astype(np.float32).astype(dtype)
    rates = (0.05 * problems.RATE[:100]).astype(np.float32)
    start = np.linspace(-2, 2, 8).astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        tx = getattr(dialects.tensorflow1, rule)(
            learning_rate=lambda count: jnp.asarray(rates.astype(dtype))[count], **options
        )

        @jax.jit
        def run(params, gradients):
            def body(carry, g):
                updates, state = tx.update(g, carry[1], carry[0])
                params = optax.apply_updates(carry[0], updates)
                return (params, state), params

            return jax.lax.scan(body, (params, tx.init(params)), gradients)[1]

        got = np.asarray(run(start, gradients), np.float64)
    var, slots = start.astype(np.float64), {}
    for t, g in enumerate(gradients.astype(np.float64), start=1):
        var, slots = kernel(var, g, slots, t, float(rates[t - 1]), **options)
        np.testing.assert_allclose(got[t - 1], var, rtol=0, atol=rtol * np.abs(var).max())


# States


@functools.cache
def pytorch():
    return store.load("pytorch"), store.load_states("pytorch")


def recorded_parameters(case, problem, dtype, update):
    recording, _ = pytorch()
    leaves = recording.of(case, dtype)
    row, column = list(problems.PROBLEMS).index(problem), recording.updates.index(update)
    return {name: leaf[row, column] for name, leaf in leaves.items()}


CARRIED = sorted(CASES["pytorch"])


@pytest.mark.slow
@pytest.mark.parametrize("case", CARRIED)
def test_fifty_updates_in_pytorch_and_fifty_here_are_a_hundred_in_pytorch(case):
    """And the state then is PyTorch's: 1e-12 of each leaf's largest element, in float64."""
    _, states = pytorch()
    spec = CASES["pytorch"][case]
    sign = -1 if spec.options.get("maximize") else 1
    with jax.enable_x64(True):
        tx = transformation("pytorch", spec)
        update = jax.jit(tx.update)
        for problem in store.STATES_PROBLEMS:
            # A rule that keeps nothing is recorded with nothing.
            given = states.get((case, problem, "float64", 50), {})
            params = recorded_parameters(case, problem, "float64", 50)
            counted = any("step" in own for own in given.values())
            state = dialects.pytorch.from_state_dict(
                tx, params, given, step=None if counted else 50
            )
            for t in range(51, 101):
                gradient = problems.PROBLEMS[problem].gradient(params, t)
                gradient = {k: sign * g for k, g in gradient.items()}
                updates, state = update(gradient, state, params)
                params = jax.tree.map(np.asarray, optax.apply_updates(params, updates))
            for name, want in recorded_parameters(case, problem, "float64", 100).items():
                np.testing.assert_allclose(
                    params[name], want, rtol=0, atol=1e-12 * np.abs(want).max()
                )
            wanted = states.get((case, problem, "float64", 100), {})
            got = dialects.pytorch.to_state_dict(state)
            assert {k: set(own) for k, own in got.items()} == {
                k: set(own) for k, own in wanted.items()
            }
            for name, own in wanted.items():
                for key, want in own.items():
                    np.testing.assert_allclose(
                        got[name][key], want, rtol=0, atol=1e-12 * np.abs(want).max()
                    )


def test_a_state_of_pytorch_comes_back_bit_for_bit():
    _, states = pytorch()
    given = states["adam-amsgrad", "coupled", "float32", 50]
    params = recorded_parameters("adam-amsgrad", "coupled", "float32", 50)
    tx = dialects.pytorch.adam(amsgrad=True)
    back = dialects.pytorch.to_state_dict(dialects.pytorch.from_state_dict(tx, params, given))
    for name, own in given.items():
        for key, value in own.items():
            np.testing.assert_array_equal(back[name][key], value)
            assert back[name][key].dtype == value.dtype


def test_a_whole_state_dict_tells_its_names():
    own = {"step": np.float32(3), "exp_avg": np.ones(2), "exp_avg_sq": np.full(2, 4.0)}
    params = {"body": {"weight": jnp.ones(2)}}
    whole = {"state": {0: own}, "param_groups": [{"params": [0], "param_names": ["body.weight"]}]}
    state = dialects.pytorch.from_state_dict(dialects.pytorch.adamw(), params, whole)
    assert int(state[0].count) == 3
    np.testing.assert_array_equal(state[0].nu["body"]["weight"], 4.0)
    del whole["param_groups"][0]["param_names"]
    with pytest.raises(ValueError, match="make the optimizer from model"):
        dialects.pytorch.from_state_dict(dialects.pytorch.adamw(), params, whole)


def test_a_carried_state_shows_the_schedules_present_value():
    tx = dialects.pytorch.sgd(lr=lambda count: 1.0 / (1 + count), momentum=0.9)
    state = dialects.pytorch.from_state_dict(
        tx, {"w": jnp.ones(2)}, {"w": {"momentum_buffer": np.ones(2)}}, step=4
    )
    np.testing.assert_allclose(optlab.hyperparams(state)["learning_rate"], 0.2)


def test_a_carried_adam_of_optlab_corrects_bias_exactly():
    """Its product of decay rates is known beyond float32, as if it had made the updates itself."""
    params, tx = {"w": jnp.ones(2)}, optlab.adam(1e-3)
    own = {"step": 1000.0, "exp_avg": np.ones(2), "exp_avg_sq": np.ones(2)}
    state = dialects.pytorch.from_state_dict(tx, params, {"w": own})
    want = 1000 * np.log([0.9, 0.999])
    logs = np.asarray(state[0].hyperparams, np.float64)[8:].reshape(2, 2)
    got = logs.sum(axis=1)  # a high and a low part for each of b1 and b2
    np.testing.assert_allclose(got, want, rtol=1e-12)


def slow(count):
    return 0.1 * 0.99**count


OPTAX_PAIRS = {
    "sgd": (optax.sgd(slow), dialects.optax.sgd(slow)),
    "momentum": (optax.sgd(0.1, 0.9, nesterov=True), optlab.sgd(0.1, momentum=0.9, nesterov=True)),
    "adagrad": (optax.adagrad(slow), dialects.optax.adagrad(slow)),
    "rmsprop": (optax.rmsprop(slow), dialects.optax.rmsprop(slow)),
    "rmsprop-all": (
        optax.rmsprop(slow, initial_scale=1.0, centered=True, momentum=0.9, bias_correction=True),
        dialects.optax.rmsprop(
            slow, initial_scale=1.0, centered=True, momentum=0.9, bias_correction=True
        ),
    ),
    "adam": (optax.adam(slow), dialects.optax.adam(slow)),
    "adam-exact": (optax.adam(slow), optlab.adam(slow)),
    "amsgrad": (optax.amsgrad(slow), optlab.adam(slow, amsgrad=True)),
    "chain": (
        optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)),
        optax.chain(optlab.clip_by_global_norm(1.0), dialects.optax.adamw(1e-2)),
    ),
    "injected": (
        optax.inject_hyperparams(optax.adamw)(1e-2, weight_decay=1e-4),
        dialects.optax.adamw(1e-2),
    ),
}


@pytest.mark.parametrize("name", OPTAX_PAIRS)
def test_fifty_updates_in_optax_and_fifty_here_are_a_hundred_in_optax(name):
    """And fifty more in Optax again; in float64, of each leaf's largest element."""
    with jax.enable_x64(True):
        theirs, ours = OPTAX_PAIRS[name]
        params = problems.PROBLEMS["coupled"].start("float64")
        gradients = {
            k: np.random.default_rng(1).normal(size=(150, *p.shape)) for k, p in params.items()
        }

        def run(tx, params, state, start, stop):
            def body(carry, g):
                updates, state = tx.update(g, carry[1], carry[0])
                return (optax.apply_updates(carry[0], updates), state), None

            part = {k: g[start:stop] for k, g in gradients.items()}
            return jax.jit(lambda p, s, g: jax.lax.scan(body, (p, s), g)[0])(params, state, part)

        wanted, _ = run(theirs, params, theirs.init(params), 0, 150)
        params, state = run(theirs, params, theirs.init(params), 0, 50)
        step = 50 if name == "momentum" else None  # which keeps no count at a constant rate
        state = dialects.optax.from_state(ours, params, state, step=step)
        params, state = run(ours, params, state, 50, 100)
        back = dialects.optax.to_state(state, theirs, params)
        assert jax.tree.structure(back) == jax.tree.structure(theirs.init(params))
        params, _ = run(theirs, params, back, 100, 150)
        for k, want in wanted.items():
            np.testing.assert_allclose(params[k], want, rtol=0, atol=1e-12 * np.abs(want).max())


PARAMS = {"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.float32)}
ADAM = {name: {"step": 3, "exp_avg": p, "exp_avg_sq": p} for name, p in PARAMS.items()}


def changed(name, **values):
    """The state of a parameter with other values."""
    return {**ADAM[name], **values}


FROM_PYTORCH = "dialects.pytorch.from_state_dict: "
FROM_OPTAX = "dialects.optax.from_state: "


@pytest.mark.parametrize(
    ("state", "options", "message"),
    [
        ({"a": ADAM["a"]}, {}, "the state must hold b, with exp_avg, exp_avg_sq, got a"),
        ({**ADAM, "c": ADAM["a"]}, {}, r"must be those in params \(a, b, …\), got c"),
        ({**ADAM, "b": ADAM["a"]}, {}, r"exp_avg of b must have the shape \(2, 2\) .* got \(3,\)"),
        (
            {**ADAM, "b": {**ADAM["b"], "max_exp_avg_sq": PARAMS["b"]}},
            {},
            "b must not have max_exp_avg_sq, got exp_avg, exp_avg_sq, max_exp_avg_sq",
        ),
        (ADAM, {"amsgrad": True}, "a must have max_exp_avg_sq"),
        (
            {**ADAM, "b": {**ADAM["b"], "step": 4}},
            {},
            "all must have made the same number of updates, got 3 at a, 4 at b",
        ),
        (
            {**ADAM, "b": {**ADAM["b"], "exp_avg": np.ones((2, 2), int)}},
            {},
            "exp_avg of b must be floating point, as the parameter, got int64",
        ),
        ({**ADAM, "b": changed("b", step=2.5)}, {}, "at b must be an integer >= 0, got 2.5"),
        ({**ADAM, "b": changed("b", step=-3)}, {}, "at b must be an integer >= 0, got -3"),
        ({**ADAM, "b": changed("b", step="x")}, {}, "at b must be an array of numbers, got <U1"),
        ({**ADAM, "b": changed("b", step=None)}, {}, "b must have step, as the other parameters"),
        (
            {**ADAM, "b": changed("b", exp_avg_sq=-PARAMS["b"])},
            {},
            "exp_avg_sq of b, of squares, must be >= 0, got -1.0",
        ),
        (
            {**ADAM, "b": changed("b", exp_avg=1j * PARAMS["b"])},
            {},
            "exp_avg of b must be floating point, as the parameter, got complex64",
        ),
        (
            {**ADAM, "b": changed("b", exp_avg=np.full((2, 2), 1e300))},
            {},
            r"exp_avg of b must be finite in float32, got 1e\+300",
        ),
        (
            {**ADAM, "b": changed("b", exp_avg=[[1.0], [2.0, 3.0]])},
            {},
            "exp_avg of b must be an array of numbers",
        ),
        ({0: ADAM["a"]}, {}, "parameters must be named by strings, got 0; make the optimizer"),
        (
            {"state": {0: ADAM["a"], 1: ADAM["b"]}, "param_groups": [{"params": [0, 1]}]},
            {},
            "must know its parameters' names, got param_groups without param_names",
        ),
        (
            {
                "state": {0: ADAM["a"], 1: ADAM["b"]},
                "param_groups": [{"params": [0], "param_names": ["a"]}],
            },
            {},
            "every parameter must have a name, got none for 1",
        ),
        ({}, {}, "got nothing; start with tx.init"),
        ([], {}, "state_dict must be a mapping by parameter name, got list"),
        ({"a": 3}, {}, "the state of a must be a mapping, got int"),
    ],
)
def test_a_state_of_pytorch_that_does_not_fit_names_the_parameter(state, options, message):
    with pytest.raises(ValueError, match=FROM_PYTORCH + ".*" + message):
        dialects.pytorch.from_state_dict(dialects.pytorch.adam(**options), PARAMS, state)


def test_a_step_is_needed_where_none_is_kept_and_must_agree_where_one_is():
    buffers = {name: {"momentum_buffer": p} for name, p in PARAMS.items()}
    tx = dialects.pytorch.sgd(0.1, momentum=0.9)
    with pytest.raises(ValueError, match="step must be given, since SGD and Muon keep no count"):
        dialects.pytorch.from_state_dict(tx, PARAMS, buffers)
    with pytest.raises(ValueError, match="step must be an integer >= 0, got step=-1"):
        dialects.pytorch.from_state_dict(tx, PARAMS, buffers, step=-1)
    with pytest.raises(ValueError, match="step must be 3, which the state tells, got step=5"):
        dialects.pytorch.from_state_dict(dialects.pytorch.adam(), PARAMS, ADAM, step=5)
    with pytest.raises(ValueError, match="step must be given, since this state keeps no count"):
        dialects.optax.from_state(tx, PARAMS, optax.sgd(0.1, 0.9).init(PARAMS))


def test_states_that_mean_something_else_are_refused():
    """A rate inside the velocity and a maximum of v̂ would go on wrongly without a word."""
    rmsprop = {
        name: {"step": 3, "square_avg": p, "momentum_buffer": p} for name, p in PARAMS.items()
    }
    with pytest.raises(ValueError, match="the rate must stand outside the velocity"):
        dialects.pytorch.from_state_dict(dialects.keras.rmsprop(momentum=0.9), PARAMS, rmsprop)
    with pytest.raises(
        ValueError, match="AMSGrad must take the maximum of v, got the maximum of v"
    ):
        dialects.pytorch.from_state_dict(optlab.adam(0.1, amsgrad=True), PARAMS, ADAM)
    with pytest.raises(
        ValueError, match="AMSGrad must take the maximum of v, got the maximum of v"
    ):
        dialects.pytorch.to_state_dict(optlab.adam(0.1, amsgrad=True).init(PARAMS))
    with pytest.raises(ValueError, match="the rate must stand inside the velocity, as in Optax"):
        dialects.optax.from_state(
            optlab.rmsprop(0.1, momentum=0.9),
            PARAMS,
            optax.rmsprop(0.1, momentum=0.9).init(PARAMS),
            step=1,
        )
    with pytest.raises(ValueError, match="freed of their bias by a product must be constant"):
        dialects.pytorch.from_state_dict(optlab.adam(0.1, b1=lambda t: 0.9), PARAMS, ADAM)


def test_a_state_of_pytorch_with_more_than_the_optimizer_keeps_is_refused():
    buffers = {name: {"momentum_buffer": p} for name, p in PARAMS.items()}
    plain = dialects.pytorch.sgd(0.1)
    with pytest.raises(ValueError, match="a must not have momentum_buffer, got momentum_buffer"):
        dialects.pytorch.from_state_dict(plain, PARAMS, buffers, step=3)
    assert int(dialects.pytorch.from_state_dict(plain, PARAMS, {}, step=3).count) == 3
    with pytest.raises(ValueError, match="step must be at least 1 where there is a state, got 0"):
        dialects.pytorch.from_state_dict(
            dialects.pytorch.sgd(momentum=0.9), PARAMS, buffers, step=0
        )


@pytest.mark.parametrize(
    ("tx", "message"),
    [
        (optax.adam(1e-3), "tx must hold an optimizer of optlab, got none of its rules"),
        (dialects.pytorch.adam, "tx must be an optax.GradientTransformation"),
        (
            optlab.accumulate(optlab.adam(0.1), 4),
            r"tx must make a step in every update, .*_replace\(inner=state\)",
        ),
        (optax.MultiSteps(optlab.adam(0.1), 4), "tx must make a step in every update"),
        (
            optax.chain(dialects.pytorch.adam(), optax.contrib.reduce_on_plateau()),
            "tx must update from gradients and parameters alone, got .*value",
        ),
        (
            optax.chain(optlab.scale_by_adam(), dialects.pytorch.adam()),
            "the optimizer must keep one exp_avg, got two of a",
        ),
    ],
)
def test_a_transformation_that_cannot_be_carried_to_is_refused(tx, message):
    with pytest.raises(ValueError, match=FROM_PYTORCH + message):
        dialects.pytorch.from_state_dict(tx, PARAMS, ADAM)


def test_parameters_of_one_name_are_refused():
    params = {"a.b": np.ones(3, np.float32), "a": {"b": np.ones(3, np.float32)}}
    with pytest.raises(ValueError, match=r"different names, got a\.b twice"):
        dialects.pytorch.from_state_dict(dialects.pytorch.adam(), params, {"a.b": ADAM["a"]})


def test_frozen_parameters_and_groups_carry_over_what_they_have():
    """PyTorch keeps nothing of a frozen parameter; groups may keep different things."""
    tx = optax.multi_transform(
        {"adam": dialects.pytorch.adamw(), "sgd": dialects.pytorch.sgd(0.1, momentum=0.9)},
        {"a": "adam", "b": "sgd"},
    )
    buffer = {"momentum_buffer": PARAMS["b"]}
    state = dialects.pytorch.from_state_dict(tx, PARAMS, {"a": ADAM["a"], "b": buffer})
    back = dialects.pytorch.to_state_dict(state)
    assert set(back["a"]) == {"step", "exp_avg", "exp_avg_sq"}
    np.testing.assert_array_equal(back["b"]["momentum_buffer"], buffer["momentum_buffer"])
    frozen = optax.multi_transform(
        {"adam": dialects.pytorch.adamw(), "frozen": optax.set_to_zero()},
        {"a": "adam", "b": "frozen"},
    )
    state = dialects.pytorch.from_state_dict(frozen, PARAMS, {"a": ADAM["a"]})
    assert set(dialects.pytorch.to_state_dict(state)) == {"a"}
    mixed = optax.multi_transform(
        {
            "torch": dialects.pytorch.sgd(0.1, momentum=0.9),
            "keras": dialects.keras.rmsprop(momentum=0.9),
        },
        {"a": "torch", "b": "keras"},
    )
    with pytest.raises(ValueError, match="the rate must stand outside the velocity"):
        dialects.pytorch.to_state_dict(mixed.init(PARAMS))


@pytest.mark.parametrize("foreign", ["inject_hyperparams", "scale_by_schedule"])
def test_counts_of_other_rules_go_on_too(foreign):
    def rate(count):
        return 1.0 / (1 + count)

    if foreign == "inject_hyperparams":
        tx = optax.inject_hyperparams(dialects.pytorch.adam)(rate)
    else:
        tx = optax.chain(dialects.pytorch.adam(1.0), optax.scale_by_schedule(rate))
    state = dialects.pytorch.from_state_dict(tx, PARAMS, ADAM)
    updates, _ = tx.update(PARAMS, state, PARAMS)
    wanted = dialects.pytorch.adam(0.25)
    state = dialects.pytorch.from_state_dict(wanted, PARAMS, ADAM)
    np.testing.assert_allclose(
        updates["a"], wanted.update(PARAMS, state, PARAMS)[0]["a"], rtol=1e-6
    )


def test_a_state_of_a_flax_model_goes_by_the_names_of_its_variables():
    from flax import nnx

    linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    params = nnx.state(linear, nnx.Param)
    given = {
        "kernel": {"step": 3, "exp_avg": np.ones((2, 3)), "exp_avg_sq": np.ones((2, 3))},
        "bias": {"step": 3, "exp_avg": np.ones(3), "exp_avg_sq": np.ones(3)},
    }
    state = dialects.pytorch.from_state_dict(dialects.pytorch.adam(), params, given)
    assert set(dialects.pytorch.to_state_dict(state)) == {"kernel", "bias"}


class Tensor:
    """What of a tensor of PyTorch counts here: NumPy cannot read it before it is a float32."""

    dtype = "torch.bfloat16"

    def __init__(self, array):
        self.array = array

    def detach(self):
        return self

    cpu = detach

    def float(self):
        other = Tensor(self.array)
        other.numpy = lambda: self.array
        return other


def test_bfloat16_tensors_are_read():
    own = {"step": 3, "exp_avg": Tensor(PARAMS["a"]), "exp_avg_sq": Tensor(PARAMS["a"])}
    state = dialects.pytorch.from_state_dict(
        dialects.pytorch.adam(), {"a": PARAMS["a"]}, {"a": own}
    )
    np.testing.assert_array_equal(state[0].mu["a"], PARAMS["a"])


def test_states_of_several_lanes_are_refused():
    lanes = {"a": jnp.ones((2, 3))}
    tx = dialects.pytorch.adam()
    with pytest.raises(ValueError, match="the state must be a single one, of arrays"):
        dialects.pytorch.to_state_dict(jax.vmap(tx.init)(lanes))


@pytest.mark.parametrize(
    "theirs",
    [
        optax.chain(optax.adam(0.1), optax.ema(0.9)),
        optax.MultiSteps(optax.adam(0.1), 4),
        optax.chain(optax.adam(0.1), optax.add_noise(0.1, 0.5, 0)),
    ],
    ids=["ema", "mid-window", "noise"],
)
def test_what_optax_keeps_beside_our_rules_is_not_dropped(theirs):
    _, state = theirs.update(PARAMS, theirs.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="all that Optax keeps must have its place in ours, got"):
        dialects.optax.from_state(dialects.optax.adam(0.1), PARAMS, state, step=1)


def test_an_average_of_optax_does_not_start_anew_on_the_way_back():
    ours = dialects.optax.adam(0.1)
    theirs = optax.chain(optax.adam(0.1), optax.ema(0.9))
    with pytest.raises(ValueError, match="all that Optax keeps must have its place in ours"):
        dialects.optax.to_state(ours.init(PARAMS), theirs, PARAMS)
    with pytest.raises(ValueError, match=r"tx must be an optax\.GradientTransformation"):
        dialects.optax.to_state(theirs, ours.init(PARAMS), PARAMS)


def test_dampening_without_momentum_is_none_whatever_says_so():
    """As in PyTorch, where a momentum of 0 keeps no velocity to dampen."""
    g = {"a": jnp.ones(3)}
    for momentum in (0.0, jnp.array(0.0), np.float32(0), lambda count: 0.0):
        tx = dialects.pytorch.sgd(0.1, momentum, 0.3)
        state = tx.init(g)
        for _ in range(3):
            updates, state = tx.update(g, state, g)
            np.testing.assert_allclose(updates["a"], -0.1, rtol=1e-6)


def test_a_state_of_optax_that_does_not_fit_says_what_was_expected():
    with pytest.raises(ValueError, match=FROM_OPTAX + ".* scale_by_adam keeps, mu, nu, got Trace"):
        dialects.optax.from_state(optlab.adam(0.1), PARAMS, optax.sgd(0.1, 0.9).init(PARAMS))
    with pytest.raises(
        ValueError, match="must have its place in ours, got none for ScaleByAdamState"
    ):
        dialects.optax.from_state(optlab.sgd(0.1), PARAMS, optax.adam(0.1).init(PARAMS))
    with pytest.raises(ValueError, match=r"the state must hold mu of \['b'\].* got none"):
        dialects.optax.from_state(
            optlab.adam(0.1), PARAMS, optax.adam(0.1).init({"a": PARAMS["a"]})
        )
    other = {**PARAMS, "b": np.ones((2, 3), np.float32)}
    with pytest.raises(ValueError, match=r"mu of \['b'\] must have the shape \(2, 2\)"):
        dialects.optax.from_state(optlab.adam(0.1), PARAMS, optax.adam(0.1).init(other))


# Arguments


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dialects.pytorch.sgd(lr=-1.0), "dialects.pytorch.sgd: lr must be finite and >= 0"),
        (lambda: dialects.pytorch.adam(betas=(0.9, 1.0)), r"betas\[1\] must be in \[0, 1\), got"),
        (
            lambda: dialects.pytorch.adam(betas=0.9),
            "betas must be a pair of decay rates, got betas=0.9",
        ),
        (lambda: dialects.pytorch.sgd(nesterov=True), "nesterov needs momentum and no dampening"),
        (lambda: dialects.pytorch.adagrad(lr_decay=-1), "lr_decay must be finite and >= 0"),
        (lambda: dialects.pytorch.rmsprop(alpha=1.0), r"alpha must be in \[0, 1\), got alpha=1.0"),
        (
            lambda: dialects.keras.rmsprop(rho=2.0),
            r"dialects.keras.rmsprop: rho must be in \[0, 1\)",
        ),
        (lambda: dialects.keras.adam(epsilon=-1), "epsilon must be finite and >= 0"),
        (lambda: dialects.keras.lamb(beta_2=1.0), r"beta_2 must be in \[0, 1\), got beta_2=1.0"),
        (lambda: dialects.timm.lars(trust_coeff=-1), "trust_coeff must be finite and >= 0"),
        (lambda: dialects.timm.lars(nesterov=True), "nesterov needs momentum and no dampening"),
        (lambda: dialects.timm.lamb(max_grad_norm=0.0), "max_grad_norm must be finite and > 0"),
        (lambda: dialects.timm.lamb(always_adapt=1), "always_adapt must be True or False"),
        (lambda: dialects.pytorch.muon(ns_steps=0), "ns_steps must be an integer >= 1, got"),
        (lambda: dialects.pytorch.muon(momentum=1.0), r"momentum must be in \[0, 1\), got"),
        (
            lambda: dialects.pytorch.muon(adjust_lr_fn="rms"),
            "dialects.pytorch.muon: adjust_lr_fn must be 'original', 'match_rms_adamw' or None, "
            "got adjust_lr_fn='rms'",
        ),
        (
            lambda: dialects.pytorch.muon(ns_coefficients=(1.0, 2.0)),
            r"ns_coefficients must be three numbers \(a, b, c\), got",
        ),
        (
            lambda: dialects.timm.muon(adjust_lr_fn="rms"),
            "adjust_lr_fn must be one of 'match_rms_adamw', 'original', 'rms_to_rms', None",
        ),
        (
            lambda: dialects.timm.muon(ns_coefficients="you"),
            "ns_coefficients must be original, quintic, polar_express, polar_express_safer, or",
        ),
        (lambda: dialects.timm.muon(safety_factor=0.0), "safety_factor must be finite and > 0"),
        (lambda: dialects.timm.muon(betas=0.9), "betas must be a pair of decay rates"),
        (lambda: dialects.keras.muon(rms_rate=-0.2), "rms_rate must be finite and > 0"),
        (
            lambda: dialects.keras.muon(exclude_layers=["("]),
            r"exclude_layers must hold regular expressions, got '\('",
        ),
        (
            lambda: dialects.keras.sgd(clipnorm=1.0, clipvalue=2.0),
            "at most one of clipnorm, clipvalue, global_clipnorm may be given, got clipnorm=1.0, "
            "clipvalue=2.0",
        ),
        (lambda: dialects.keras.sgd(clipnorm=0.0), "clipnorm must be finite and > 0"),
        (lambda: dialects.keras.adamw(weight_decay=None), "weight_decay must be a number, got"),
        (
            lambda: dialects.tensorflow1.adagrad(0.1, initial_accumulator_value=0.0),
            "initial_accumulator_value must be finite and > 0",
        ),
        (lambda: dialects.tensorflow1.sgd(0.1, use_nesterov=True), "use_nesterov needs momentum"),
    ],
)
def test_bad_arguments_are_refused_under_the_frameworks_names(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def public(module):
    return filter(inspect.isfunction, (getattr(module, name) for name in module.__all__))


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(f, id=f"{module.__name__.split('.')[-1]}.{f.__name__}")
        for module in (dialects.pytorch, dialects.keras, dialects.tensorflow1)
        for f in public(module)
    ],
)
def test_every_function_documents_its_arguments(function):
    text = inspect.getdoc(function)
    described = text.split("Args:")[1].split("Returns:")[0]
    for argument in inspect.signature(function).parameters:
        assert f"    {argument}: " in described
    assert "Raises:" in text


@pytest.mark.parametrize("module", ["pytorch", "keras", "tensorflow1"])
def test_every_dialect_has_every_rule_and_its_state_reads_and_replaces(module):
    dialect = getattr(dialects, module)
    for rule in ("sgd", "adagrad", "rmsprop", "adam", "adamw"):
        function = getattr(dialect, rule)
        names = inspect.signature(function).parameters
        rate = "lr" if module == "pytorch" else "learning_rate"
        options = {"momentum": 0.9} if "momentum" in names else {}
        if "weight_decay" in names:
            options["weight_decay"] = 0.1
        tx = function(**{rate: 0.1}, **options)
        state = optlab.replace_hyperparams(tx.init(PARAMS), learning_rate=0.0)
        assert float(optlab.hyperparams(state)["learning_rate"]) == 0.0
        updates, _ = tx.update(PARAMS, state, PARAMS)
        still = -0.1 if (module, rule) == ("tensorflow1", "adamw") else 0.0
        np.testing.assert_allclose(updates["a"], still, rtol=1e-6)


def test_rates_and_options_map_over_lanes():
    """A knob at 0 in a lane equals the rule built without it."""
    g = {"a": jnp.array([1.0, -2.0, 3.0])}

    def run(momentum, weight_decay, rate):
        tx = dialects.keras.sgd(rate, momentum=momentum, weight_decay=weight_decay)
        state, params = tx.init(g), g
        for _ in range(3):
            updates, state = tx.update(g, state, params)
            params = optax.apply_updates(params, updates)
        return params["a"]

    lanes = jax.vmap(run)(jnp.array([0.0, 0.9]), jnp.array([0.0, 0.1]), jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(lanes[0], run(0.0, None, 0.1), rtol=1e-6)
    np.testing.assert_allclose(lanes[1], run(0.9, 0.1, 0.2), rtol=1e-6)


# The page


@pytest.mark.parametrize("rule", _table.TABLES)
def test_the_table_names_every_dialect_and_stands_in_the_documentation(rule):
    text = dialects.table(rule)
    names = [name for name, module in _table.MODULES.items() if hasattr(module, rule)]
    if rule == "clip":  # which has another name in each
        names = [name for name in _table.MODULES if name != "timm"]
    if rule == "muon":  # which Optax has in a module of its own
        names.append("Optax")
    assert len(names) >= 3
    assert all(f"\n{name} " in text for name in names)
    assert text in dialects.__doc__
    narrow = dialects.table(rule, width=60)
    assert all(f"\n{name}\n" in narrow for name in names)


def test_the_table_shows_the_defaults():
    line = next(x for x in dialects.table("rmsprop").splitlines() if x.startswith("PyTorch"))
    assert all(default in line for default in ("lr=0.01", "alpha=0.99", "eps=1e-08"))
    with pytest.raises(ValueError, match=r"rule must be one of sgd, .* got rule='lion'"):
        dialects.table("lion")
