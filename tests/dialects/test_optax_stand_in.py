"""`optlab.dialects.optax` in the place of `import optax`: names, results, states, programs.

Optax's own tests run on it with `python tests/dialects/optax_suite.py`.
"""

import functools
import inspect
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from golden import problems, store
from optlab.dialects import optax as stand_in
from optlab.dialects.optax import _rules, _stand_in
from optlab.dialects.optax._stand_in import Part

every_name = pytest.mark.parametrize("name", _rules.__all__)


# Names


@every_name
def test_signatures_are_those_of_optax(name):
    theirs, ours = (
        [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]
        for function in (getattr(optax, name), getattr(stand_in, name))
    )
    assert ours == theirs


@every_name
def test_every_argument_is_documented(name):
    function = getattr(stand_in, name)
    function = getattr(function, "func", function)  # of nadam and nadamw
    text = inspect.getdoc(function)
    assert f"`optax.{function.__name__}`" in text
    assert all(re.search(rf"^ +{a} ?:", text, re.M) for a in inspect.signature(function).parameters)


def test_every_public_name_of_optax_is_there_and_is_optaxs_unless_it_is_ours():
    for name in {*dir(optax), *optax.__all__}:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            theirs, ours = getattr(optax, name), getattr(stand_in, name)
        if name.startswith("__"):
            continue
        assert (ours is theirs) == (name not in (*_rules.__all__, "contrib")), name
    assert set(dir(optax)) <= set(dir(stand_in))
    assert set(optax.__all__) | {"from_state", "to_state"} == set(stand_in.__all__)
    assert stand_in.__version__ == optax.__version__
    with pytest.raises(AttributeError, match="has no attribute 'adamx'"):
        stand_in.adamx  # noqa: B018


def test_what_optax_deprecates_warns_here_too():
    with pytest.warns(DeprecationWarning, match="use optax.contrib.dpsgd"):
        stand_in.dpsgd  # noqa: B018


# Results


def slowly(count):
    return 0.02 * 0.99**count


CASES = {
    "sgd": lambda optax: optax.sgd(0.1),
    "sgd-momentum": lambda optax: optax.sgd(slowly, momentum=0.9),
    "sgd-nesterov": lambda optax: optax.sgd(0.02, momentum=0.9, nesterov=True),
    "sgd-nesterov-alone": lambda optax: optax.sgd(0.1, nesterov=True),
    "adagrad": lambda optax: optax.adagrad(0.2),
    "rmsprop": lambda optax: optax.rmsprop(0.01),
    "rmsprop-momentum": lambda optax: optax.rmsprop(slowly, momentum=0.5, nesterov=True),
    "rmsprop-centered": lambda optax: optax.rmsprop(0.01, centered=True),
    "rmsprop-corrected": lambda optax: optax.rmsprop(0.01, bias_correction=True),
    "adam": lambda optax: optax.adam(0.02),
    "adamw": lambda optax: optax.adamw(slowly),
    "adamw-mask": lambda optax: optax.adamw(
        0.02,
        weight_decay=lambda count: 0.1 * 0.9**count,
        mask=lambda params: jax.tree.map(lambda p: p.ndim > 0, params),
    ),
    "nadam": lambda optax: optax.nadam(0.02),
    "nadamw": lambda optax: optax.nadamw(0.02, eps_root=1e-4),
    "amsgrad": lambda optax: optax.amsgrad(0.02),
    "amsgrad-raw": lambda optax: optax.amsgrad(0.02, bias_correction_nu=False),
    "lion": lambda optax: optax.lion(0.01),
    "lars": lambda optax: optax.lars(slowly, 0.1, eps=1e-3),
    "lars-masks": lambda optax: optax.lars(
        0.1,
        weight_decay=0.1,
        weight_decay_mask=lambda params: jax.tree.map(lambda p: p.ndim > 0, params),
        trust_ratio_mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    ),
    "lamb": lambda optax: optax.lamb(slowly, weight_decay=0.1),
    "clip_by_global_norm": lambda optax: optax.chain(
        optax.clip_by_global_norm(1.0), optax.trace(0.9), optax.scale_by_learning_rate(0.02)
    ),
    "parts": lambda optax: optax.chain(
        optax.clip(0.5),
        optax.scale_by_rss(),
        optax.scale_by_stddev(),
        optax.add_decayed_weights(1e-2, mask={"layer.weight": True, "layer.bias": 0, "scale": 1}),
        optax.scale(-0.02),
    ),
    "lion-smooth": lambda optax: optax.chain(
        optax.scale_by_lion(mode="smooth"), optax.scale_by_learning_rate(slowly)
    ),
}
"""What programs usually call, mostly with defaults alone, as functions of the imported module."""

UPDATES = 60


@functools.cache
def trajectories(dtype):
    """Return for each case the parameters and states of Optax and of the stand-in.

    All are updated in one compiled function, which compiles faster than one each.
    """
    problem = problems.PROBLEMS["coupled"]
    with jax.enable_x64(dtype == "float64"):
        txs = {name: (make(optax), make(stand_in)) for name, make in CASES.items()}

        @jax.jit
        def update(gradients, states, params):
            new = {}
            for name, pair in txs.items():
                new[name] = []
                for i, tx in enumerate(pair):
                    p = params[name][i]
                    u, state = tx.update(gradients[name][i], states[name][i], p)
                    new[name].append((optax.apply_updates(p, u), state))
            return (
                {name: [p for p, _ in pair] for name, pair in new.items()},
                {name: [s for _, s in pair] for name, pair in new.items()},
            )

        start = problem.start(dtype)
        params = {name: [start, start] for name in txs}
        states = {name: [tx.init(start) for tx in pair] for name, pair in txs.items()}
        for t in range(1, UPDATES + 1):
            gradients = {
                name: [problem.gradient(p, t) for p in pair] for name, pair in params.items()
            }
            params, states = update(gradients, states, params)
            params = jax.tree.map(np.asarray, params)
    return params, states


@pytest.mark.parametrize("dtype", [pytest.param("float64", marks=pytest.mark.slow), "float32"])
@pytest.mark.parametrize("name", CASES)
def test_parameters_are_those_of_optax_to_the_tolerance_of_the_golden_trajectories(name, dtype):
    """1e-12 of a leaf's largest element in float64, in float32 2 ulp of it an update."""
    theirs, ours = (
        {k: leaf[None, None] for k, leaf in p.items()} for p in trajectories(dtype)[0][name]
    )
    if dtype == "float64":
        assert store.relative_error(ours, theirs) <= 1e-12
    else:
        assert store.ulps(ours, theirs, [UPDATES]) <= 2


@pytest.mark.parametrize("name", CASES)
def test_states_are_those_of_optax_in_every_field_and_type(name):
    theirs, ours = trajectories("float64")[1][name]
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


PARAMS = {"a": jnp.array([1.0, -2.0, 3.0]), "b": jnp.array(0.5), "c": None}


def run(tx, gradients, params=PARAMS, state=None):
    state = tx.init(params) if state is None else state
    for g in gradients:
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def random_gradients(number=4, params=PARAMS):
    rng = np.random.default_rng(0)
    return [
        jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
        for _ in range(number)
    ]


def assert_alike(ours, theirs, rtol=2e-5, atol=1e-6):
    """Require equal trees; Optax's bias corrections in float32 are off by up to 2e-5."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = jnp.asarray(a), jnp.asarray(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["sgd-momentum", "rmsprop-momentum", "adamw-mask", "lion"])
def test_a_run_that_began_in_optax_goes_on_here(name):
    with jax.enable_x64(True):
        params = {"layer": jnp.array([1.0, -2.0]), "scale": jnp.array(0.5)}
        gradients = random_gradients(6, params)
        theirs, ours = CASES[name](optax), CASES[name](stand_in)
        wanted = run(theirs, gradients, params)
        params, state = run(theirs, gradients[:3], params)
        assert_alike(run(ours, gradients[3:], params, state), wanted, rtol=1e-12)


EDGES = {
    "ascent": lambda optax: optax.sgd(-0.1),
    "ascent of adam": lambda optax: optax.adam(-0.1),
    "no momentum": lambda optax: optax.sgd(0.1, momentum=0.0),
    "a sum": lambda optax: optax.sgd(0.1, momentum=1.0),
    "growing momentum": lambda optax: optax.sgd(0.1, momentum=1.5),
    "negative momentum": lambda optax: optax.sgd(0.1, momentum=-0.5, nesterov=True),
    "negative b1": lambda optax: optax.adam(0.1, b1=-0.5),
    "negative decay": lambda optax: optax.adamw(0.1, weight_decay=-0.1),
    "no decay": lambda optax: optax.adamw(0.1, weight_decay=0.0),
    "a rate that changes sign": lambda optax: optax.adam(lambda count: 0.1 - 0.1 * count),
    "no rate": lambda optax: optax.scale_by_learning_rate(),
    "ascent by flag": lambda optax: optax.scale_by_learning_rate(slowly, flip_sign=False),
    "adagrad from 0 without eps": lambda optax: optax.adagrad(0.1, 0.0, eps=0.0),
    "rmsprop without eps": lambda optax: optax.rmsprop(0.1, eps=0.0),
    "rate as an array": lambda optax: optax.adam(np.array([0.1])[0]),
    "float16 moments": lambda optax: optax.adam(0.1, mu_dtype=jnp.float16),
    "named type": lambda optax: optax.sgd(0.1, 0.9, accumulator_dtype="bfloat16"),
    "integers in a mask": lambda optax: optax.adamw(0.1, mask={"a": 1, "b": 0, "c": None}),
    "clip to nothing": lambda optax: optax.clip(0.0),
    "clip backwards": lambda optax: optax.clip(-1.0),
    "clip norm to infinity": lambda optax: optax.clip_by_global_norm(jnp.inf),
}


@pytest.mark.parametrize("name", EDGES)
def test_arguments_at_the_edge_do_what_they_do_in_optax(name):
    theirs, ours = (EDGES[name](module) for module in (optax, stand_in))
    first, *others = random_gradients()
    gradients = [first | {"a": first["a"].at[1].set(0.0)}, *others]
    # A velocity of about 4 in bfloat16, which Optax also computes in, is good to 2⁻⁶.
    tolerances = {"float16 moments": (1e-2, 1e-6), "named type": (1e-2, 2e-2)}
    rtol, atol = tolerances.get(name, (2e-5, 1e-6))
    assert_alike(run(ours, gradients), run(theirs, gradients), rtol, atol)


LEAVES = {
    "integers": {"a": jnp.array([1, 2]), "b": jnp.array(3)},
    "Python numbers": {"a": 1.0, "b": -2.0},
    "complex": {"a": jnp.array([1 + 2j, -0.5j]), "b": jnp.array(1.0)},
    "masked": {"a": jnp.array([1.0, 2.0]), "b": optax.MaskedNode()},
    "none": {},
}


@pytest.mark.parametrize(
    "rule", ["adam", "lion", "sgd", "clip_by_global_norm", "add_decayed_weights"]
)
@pytest.mark.parametrize("leaves", LEAVES)
def test_any_leaves_that_optax_takes_are_taken(rule, leaves):
    if rule == "clip_by_global_norm" and leaves in ("integers", "Python numbers"):
        pytest.skip("Optax divides by the norm in the type of arrays that are floating point")
    params = LEAVES[leaves]
    theirs, ours = (getattr(module, rule)(0.1) for module in (optax, stand_in))
    wanted = theirs.update(params, theirs.init(params), params)
    got = ours.update(params, ours.init(params), params)
    assert_alike(got, wanted)


def test_gradients_that_optax_broadcasts_are_broadcast():
    params = {"a": jnp.array([1.0, 2.0])}
    gradient = {"a": jnp.array([[0.5, -1.0]])}
    theirs, ours = optax.adam(0.1), stand_in.adam(0.1)
    wanted = theirs.update(gradient, theirs.init(params))
    assert_alike(ours.update(gradient, ours.init(params)), wanted)


@pytest.mark.parametrize("bad", [jnp.inf, jnp.nan])
def test_a_norm_that_is_not_finite_does_what_it_does_in_optax(bad):
    g = {"a": jnp.array([bad, 1.0]), "b": jnp.array(2.0)}
    for max_norm in (1.0, jnp.inf):
        theirs, ours = (m.clip_by_global_norm(max_norm) for m in (optax, stand_in))
        assert_alike(ours.update(g, ours.init(g)), theirs.update(g, theirs.init(g)))


@pytest.mark.parametrize("state", [None, {}, ()])
def test_transformations_without_a_state_return_the_one_they_are_given(state):
    for tx in (
        stand_in.clip(1.0),
        stand_in.clip_by_global_norm(1.0),
        stand_in.add_decayed_weights(),
    ):
        assert tx.update(PARAMS, state, PARAMS)[1] is state


FLOATS = ("bfloat16", "float32")


@pytest.mark.parametrize("name", ["sgd", "sgd-momentum", "adam", "adamw", "lion", "rmsprop"])
@pytest.mark.parametrize("gradient", FLOATS)
@pytest.mark.parametrize("param", FLOATS)
def test_types_are_those_of_optax(name, gradient, param):
    params = {"a": jnp.ones(3, param)}
    gradients = {"a": jnp.ones(3, gradient)}
    theirs, ours = CASES[name](optax), CASES[name](stand_in)
    state = theirs.init(params)
    assert_alike(ours.init(params), state)
    wanted = jax.eval_shape(theirs.update, gradients, state, params)[0]
    updates, new_state = jax.eval_shape(ours.update, gradients, state, params)
    assert updates == wanted
    # Optax widens some moments at the first update; ours keep the type that init gave.
    assert new_state == jax.eval_shape(lambda: state)
    if not name.startswith("adamw") and name != "lion":
        assert (
            jax.eval_shape(ours.update, gradients, state)[0]
            == jax.eval_shape(theirs.update, gradients, state)[0]
        )


def test_a_huge_gradient_is_not_the_end_of_a_coordinate():
    """The difference that the stand-in is for: Optax's second moment stays infinite."""
    g = {"a": jnp.array([1e20])}
    steps = [g, *[{"a": jnp.array([1.0])}] * 3]
    params = {"a": jnp.array([1.0])}
    theirs, _ = run(optax.adam(0.1), steps, params)
    ours, _ = run(stand_in.adam(0.1), steps, params)
    assert theirs["a"] == 1.0
    assert ours["a"] < 0.95
    clip = stand_in.clip_by_global_norm(1.0)
    np.testing.assert_allclose(clip.update(g, clip.init(g))[0]["a"], 1.0, rtol=1e-6)


def test_the_norm_is_in_the_leaves_type_and_in_range():
    tree = {"a": jnp.full(4, 1e30), "b": None}
    np.testing.assert_allclose(stand_in.global_norm(tree), 2e30, rtol=1e-6)
    for leaf in (jnp.ones(3, jnp.bfloat16), jnp.ones(3, complex), jnp.arange(3)):
        theirs, ours = optax.tree.norm([leaf]), stand_in.global_norm([leaf])
        assert_alike(ours, theirs, rtol=1e-2 if leaf.dtype == jnp.bfloat16 else 2e-6)
    assert stand_in.global_norm(()) == 0


# Within Optax


WRAPPERS = {
    "chain": lambda optax: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)),
    "named_chain": lambda optax: optax.named_chain(
        ("clip", optax.clip(1.0)), ("adam", optax.adam(0.1))
    ),
    "partition": lambda optax: optax.partition(
        {"adam": optax.adam(0.1), "sgd": optax.sgd(0.1, 0.9)}, {"a": "adam", "b": "sgd", "c": "sgd"}
    ),
    "masked": lambda optax: optax.masked(optax.adamw(0.1), {"a": True, "b": False, "c": False}),
    "MultiSteps": lambda optax: optax.MultiSteps(optax.adamw(slowly), 2),
    "apply_if_finite": lambda optax: optax.apply_if_finite(optax.adam(0.1), 3),
    "inject_hyperparams": lambda optax: optax.inject_hyperparams(optax.adamw)(
        slowly, b1=0.8, mu_dtype=None
    ),
    "flatten": lambda optax: optax.flatten(optax.rmsprop(0.1, momentum=0.9)),
    "scheduled momentum": lambda optax: optax.inject_hyperparams(optax.sgd)(
        0.1, momentum=lambda count: 0.9 - 0.1 * count
    ),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_optaxs_wrappers_treat_a_stand_in_as_their_own(name):
    theirs, ours = WRAPPERS[name](optax), WRAPPERS[name](stand_in)
    params = {"a": PARAMS["a"], "b": PARAMS["b"], "c": jnp.ones(2)}
    gradients = random_gradients(4, params)
    if name == "apply_if_finite":
        gradients[1] = jax.tree.map(lambda g: g * jnp.nan, gradients[1])
    assert_alike(run(ours, gradients, params), run(theirs, gradients, params))
    state = ours.init(params)
    if name not in ("MultiSteps", "flatten"):  # which do not map in Optax either
        assert_alike(optax.tree_map_params(ours, lambda x: x, state), state)


def test_states_are_read_and_set_as_optaxs():
    tx = stand_in.adamw(slowly)
    state = tx.init(PARAMS)
    assert isinstance(state[0], optax.ScaleByAdamState)
    count, mu, _ = state[0]
    assert jax.tree.structure(mu) == jax.tree.structure(PARAMS)
    is_rate = lambda path, _: path[-1].tuple_name == "ScaleByScheduleState"  # noqa: E731
    state = optax.tree.set(state, is_rate, count=jnp.array(7))
    assert optax.tree.get(state, "count", filtering=is_rate) == 7
    assert count == optax.tree.get(state, "count", filtering=lambda p, x: not is_rate(p, x)) == 0
    # The rate starts anew where only its count is set, and Adam's bias does not.
    updates, _ = tx.update(PARAMS, state, PARAMS)
    theirs, _ = optax.adamw(slowly).update(PARAMS, state, PARAMS)
    assert_alike(updates, theirs)


def test_any_number_may_be_a_schedule():
    def moving(count):
        return 0.9 - 0.1 * count

    gradients = random_gradients()
    mask = lambda params: jax.tree.map(lambda p: p.ndim > 0, params)  # noqa: E731
    tx = stand_in.adamw(0.1, b1=moving, mask=mask, mu_dtype=jnp.float32)
    inject = optax.inject_hyperparams(optax.adamw, static_args=("mask", "mu_dtype"))
    theirs = inject(0.1, b1=moving, mask=mask, mu_dtype=jnp.float32)
    assert_alike(run(tx, gradients), run(theirs, gradients))


def test_rates_map_over_lanes():
    rates = jnp.array([0.1, -0.2])

    def last(rate, optax):
        return run(optax.adam(rate), random_gradients())[0]

    ours = jax.vmap(lambda rate: last(rate, stand_in))(rates)
    assert_alike(ours, jax.vmap(lambda rate: last(rate, optax))(rates))


def test_missing_parameters_are_a_value_error_as_in_optax():
    for tx in (stand_in.adamw(0.1), stand_in.add_decayed_weights(0.1)):
        with pytest.raises(ValueError, match="must be given the parameters"):
            tx.update(PARAMS, tx.init(PARAMS))


def test_arguments_of_the_wrong_number_are_a_type_error():
    with pytest.raises(TypeError, match=r"adam\(\) missing a required argument: 'learning_rate'"):
        stand_in.adam()


def test_a_state_of_another_length_is_refused_as_in_optax():
    with pytest.raises(ValueError, match="number of updates and states has to be the same"):
        stand_in.adam(0.1).update(PARAMS, (), PARAMS)


def test_an_argument_of_a_later_optax_is_left_to_it():
    calls = []

    def theirs(rate, new=None):
        calls.append(new)
        return optax.sgd(rate)

    @_stand_in.stands_in(theirs)
    def ours(who, rate):
        """Descend."""
        return [Part(), _rules._rate(who, rate)]

    assert_alike(run(ours(0.1), random_gradients()), run(optax.sgd(0.1), random_gradients()))
    assert ours(0.1, new=2).init is not None
    assert calls == [None, 2]


def test_states_are_carried_over_to_other_wrappers():
    gradients = random_gradients()
    injected = optax.inject_hyperparams(optax.adam)(0.1)
    _, state = run(injected, gradients)
    _, wanted = run(optax.adam(0.1), gradients)
    assert_alike(stand_in.from_state(stand_in.adam(0.1), PARAMS, state), wanted)
    back = stand_in.to_state(wanted, stand_in.inject_hyperparams(stand_in.adam)(0.1), PARAMS)
    assert_alike(back, state)
    ours = stand_in.from_state(optlab.adam(0.1), PARAMS, wanted)
    assert int(ours[0].count) == 4


# Programs


PROGRAMS = {
    "a loop": """
import jax, jax.numpy as jnp
import optax

def loss(params, x, y):
    return optax.losses.squared_error(x @ params["w"] + params["b"], y).mean()

x = jnp.linspace(-1, 1, 24).reshape(8, 3)
y = x @ jnp.array([1.0, -2.0, 0.5]) + 3.0
schedule = optax.warmup_cosine_decay_schedule(0.0, 0.1, 3, 12)
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(learning_rate=schedule))
result = {"w": jnp.zeros(3), "b": jnp.zeros(())}
state = optimizer.init(result)

@jax.jit
def step(params, state):
    grads = jax.grad(loss)(params, x, y)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

for _ in range(12):
    result, state = step(result, state)
""",
    "Flax NNX": """
import jax, jax.numpy as jnp
import optax
from flax import nnx

class Model(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(2, 4, rngs=rngs)
        self.second = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))

model = Model(nnx.Rngs(0))
learning_rate, momentum = 0.005, 0.9
optimizer = nnx.Optimizer(model, optax.adamw(learning_rate, momentum), wrt=nnx.Param)
x = jnp.linspace(-1, 1, 16).reshape(8, 2)

@nnx.jit
def train_step(model, optimizer, x):
    loss = lambda model: optax.l2_loss(model(x), x[:, :1]).mean()
    optimizer.update(model, nnx.grad(loss)(model))

for _ in range(4):
    train_step(model, optimizer, x)
result = nnx.to_pure_dict(nnx.state(model, nnx.Param))
""",
    "TrainState": """
import jax, jax.numpy as jnp
import optax
from flax import linen as nn, serialization
from flax.training import train_state

model = nn.Dense(3)
x = jnp.linspace(-1, 1, 12).reshape(4, 3)
params = model.init(jax.random.key(0), x)["params"]
tx = optax.sgd(learning_rate=0.1, momentum=0.9)
state = train_state.TrainState.create(apply_fn=model.apply, params=params, tx=tx)

@jax.jit
def train_step(state):
    def loss(params):
        logits = state.apply_fn({"params": params}, x)
        labels = jnp.array([0, 1, 2, 0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return state.apply_gradients(grads=jax.grad(loss)(state.params))

for _ in range(3):
    state = train_step(state)
state = serialization.from_bytes(state, serialization.to_bytes(state))
state = train_step(state)
result = state.params | {"trace": state.opt_state[0].trace}
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_with_the_import_changed_gives_the_same(name):
    results = []
    for line in ("import optax\n", "from optlab.dialects import optax\n"):
        namespace = {}
        exec(PROGRAMS[name].replace("import optax\n", line), namespace)
        results.append(namespace["result"])
    assert_alike(results[1], results[0])
