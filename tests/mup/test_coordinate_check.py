"""The coordinate check: slopes and words for made-up numbers, and the numbers of real networks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

import optlab
from optlab import mup

WIDTHS = np.array([16, 64, 256])


def made_up(*powers):
    """Return a check whose activations change as powers of the width, from three seeds."""
    seeds = np.array([0.5, 1.0, 1.5])[None, :, None, None]
    last = np.stack([WIDTHS.astype(float) ** power for power in powers], axis=-1)
    changes = np.broadcast_to(last[:, None, None], (3, 3, 4, len(powers))) * seeds
    names = ("hidden", "output")[: len(powers)]
    return mup.CoordinateCheck(names, WIDTHS, changes, np.ones((3, 3, 5, len(powers))), 0.1)


def test_slopes_are_the_powers_of_the_width():
    check = made_up(0.0, 0.5)
    assert check.slopes == pytest.approx({"hidden": 0.0, "output": 0.5}, abs=1e-9)
    assert not check.passed
    assert check.failures == {"output": "its changes grow with the width, as width^0.50"}
    lines = str(check).splitlines()
    assert lines[0].split() == ["activation", "16", "64", "256", "slope"]
    assert lines[2].split() == ["output", "4", "8", "16", "0.50"]
    assert lines[3] == "failed: output: its changes grow with the width, as width^0.50"


def test_level_changes_pass():
    check = made_up(0.05, -0.09)
    assert check.passed
    assert check.verdict.startswith("passed: ")


def test_two_codings_at_once_are_explained():
    verdict = made_up(0.0, -1.0).verdict
    assert "its changes shrink with the width, as width^-1.00" in verdict
    assert "Choose one coding" in verdict
    assert "Choose one coding" not in made_up(0.0, -0.3).verdict
    # Muon, whose biases have Adam's updates, has a slope of −0.58 then; and a standard network with
    # SGD has −0.59 in the first layer and 0.62 in the output.
    assert "Choose one coding" in made_up(0.0, -0.58).verdict
    assert "Choose one coding" not in made_up(-0.59, 0.62).verdict


def test_what_does_not_change_and_what_is_not_finite_is_told_apart():
    check = made_up(0.0, 0.0)
    changes = np.array(check.changes)
    changes[..., 0], changes[2, ..., 1] = 0, math.inf
    check = mup.CoordinateCheck(check.names, WIDTHS, changes, check.sizes, 0.1)
    assert check.failures == {
        "hidden": "does not change: no gradient reaches what makes it",
        "output": "not finite at width 256: lower the rate, or see why it grows: at width 16 "
        "it is finite",
    }
    assert all(map(math.isnan, check.slopes.values()))


PIXELS, LABELS = load_digits(return_X_y=True)
BATCH = jnp.asarray(PIXELS[:64] / 16 - 0.3, jnp.float32), jnp.asarray(LABELS[:64])


def drawn(width, key):
    """Return the parameters of a network without biases, of standard deviation 1/√(input)."""
    shapes = {"stem": (64, width), "dense": (width, width), "head": (width, 10)}
    keys = jax.random.split(key, 3)
    return {
        name: {"kernel": jax.random.normal(key, shape) / shape[0] ** 0.5}
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def loss_with(multiplier):
    def loss(params, batch):
        pixels, labels = batch
        h1 = jax.nn.relu(pixels @ params["stem"]["kernel"])
        h2 = jax.nn.relu(h1 @ params["dense"]["kernel"])
        output = multiplier * (h2 @ params["head"]["kernel"])
        log_probs = jax.nn.log_softmax(output)
        nll = -jnp.take_along_axis(log_probs, labels[:, None], axis=1).mean()
        return nll, {"h1": h1, "h2": h2, "output": output}

    return loss


def standard(width, key):
    return drawn(width, key), loss_with(1.0)


def in_mup(base):
    def make(width, key):
        narrow = drawn(base, jax.random.fold_in(key, 1))
        return mup.init(drawn(width, key), narrow), loss_with(base / width)

    return make


def of_base(tx, base):
    return lambda params: mup.transfer(tx, params, drawn(base, jax.random.key(0)))


def test_a_standard_network_fails_and_one_in_mup_passes():
    options = {"steps": 3, "seeds": 2, "tolerance": 0.25}
    adam, widths = optlab.adam(1e-2), [64, 512]
    check = mup.coordinate_check(standard, widths, BATCH, adam, **options)
    assert check.names == ("h1", "h2", "output")
    # The output's changes grow as √width or faster.
    assert check.slopes["output"] > 0.5
    assert not check.passed
    # Of two seeds the slopes scatter by 0.1.
    check = mup.coordinate_check(in_mup(64), widths, BATCH, of_base(adam, 64), **options)
    assert check.passed, str(check)


# Of h1, h2 and output over widths 64 to 2048 after five updates, by other code from other seeds.
# With Adam at this rate the wide standard networks blow up within five updates, and how their
# hidden activations change then depends on the digits; their output's slope does not.
REFERENCE = {
    ("adam", "standard"): (None, None, 0.66),
    ("adam", "mup"): (0.02, 0.03, -0.01),
    ("sgd", "standard"): (-0.56, 0.12, 0.63),
    ("sgd", "mup"): (0.02, 0.02, -0.07),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parametrization"), REFERENCE)
def test_slopes_are_those_of_the_published_check(name, parametrization):
    tx = {"adam": optlab.adam(1e-2), "sgd": optlab.sgd(0.3)}[name]
    make, optimizer = standard, tx
    if parametrization == "mup":
        make, optimizer = in_mup(64), of_base(tx, 64)
    check = mup.coordinate_check(make, [64, 256, 512, 2048], BATCH, optimizer, seeds=3)
    print(f"{name}, {parametrization}\n{check}")
    for slope, want in zip(check.slopes.values(), REFERENCE[name, parametrization], strict=True):
        # From three seeds.
        assert want is None or slope == pytest.approx(want, abs=0.1)
    assert check.passed == (parametrization == "mup")


def residual(depth, key):
    """Return a residual network whose branches are multiplied by (base depth / depth)^(1/2)."""
    stem, up, down, head = jax.random.split(key, 4)
    width, branch = 32, 0.5 * (4 / depth) ** 0.5
    scale = width**-0.5
    params = {
        "stem": {"kernel": jax.random.normal(stem, (64, width)) / 8},
        "layers": {
            "up": {"kernel": jax.random.normal(up, (depth, width, width)) * scale},
            "down": {"kernel": jax.random.normal(down, (depth, width, width)) * scale},
        },
        "head": {"kernel": jax.random.normal(head, (width, 10)) * scale},
    }

    def loss(params, batch):
        pixels, labels = batch

        def block(h, layer):
            inner = jax.nn.relu(h @ layer["up"]["kernel"])
            return h + branch * (inner @ layer["down"]["kernel"]), None

        h, _ = jax.lax.scan(block, pixels @ params["stem"]["kernel"], params["layers"])
        output = h @ params["head"]["kernel"]
        log_probs = jax.nn.log_softmax(output)
        nll = -jnp.take_along_axis(log_probs, labels[:, None], axis=1).mean()
        return nll, {"stream": h, "output": output}

    return params, loss


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tx", "alone"), [(optlab.adam(1e-3), 0.15), (optlab.muon(3e-3, weight_decay=0.0), 0.1)]
)
def test_changes_do_not_grow_with_the_depth_where_rates_know_it(tx, alone):
    def by_depth(params):
        ratio = len(params["layers"]["up"]["kernel"]) / 4
        return mup.transfer(tx, params, params, depth_ratio=ratio, alpha=0.5)

    options = {"steps": 3, "seeds": 2}
    own = mup.coordinate_check(residual, [4, 64], BATCH, by_depth, **options)
    assert own.passed, str(own)
    # With one rate for all depths, changes grow as its root where blocks alone make them.
    plain = mup.coordinate_check(residual, [4, 64], BATCH, tx, **options)
    assert plain.slopes["output"] > alone


def make_bad(width, key):
    return drawn(width, key)


def without_activations(width, key):
    return drawn(width, key), lambda params, batch: jnp.sum(params["stem"]["kernel"])


def other_names(width, key):
    def loss(params, batch):
        total = jnp.sum(params["stem"]["kernel"])
        return total, {f"width{width}": total}

    return drawn(width, key), loss


REFUSED = {
    "a width of 0": (standard, [0, 8], {}, "each of widths must be an integer >= 1"),
    "a negative width": (standard, [-8, 8], {}, "each of widths must be an integer >= 1"),
    "a width of 1.5": (standard, [1.5, 8], {}, "each of widths must be an integer >= 1"),
    "one width": (standard, [8], {}, "at least two different"),
    "one width twice": (standard, [8, 8], {}, "at least two different"),
    "a width alone": (standard, 8, {}, r"widths must be a sequence, got 8; write \[64, 512\]"),
    "a name of an optimizer": (
        standard,
        [4, 8],
        {"optimizer": "sgd"},
        "optimizer must be an optax.GradientTransformation, got 'sgd'",
    ),
    "one update": (standard, [4, 8], {"steps": 1}, "steps must be an integer >= 3"),
    "no seeds": (standard, [4, 8], {"seeds": 0}, "seeds must be an integer >= 1"),
    "no tolerance": (standard, [4, 8], {"tolerance": 0.0}, "tolerance must be"),
    "a model without a loss": (make_bad, [4, 8], {}, "must return the parameters and the loss"),
    "no activations": (without_activations, [4, 8], {}, "must return the loss and the activations"),
    "other names": (other_names, [4, 8], {"seeds": 1}, "activations of the same names"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused(case):
    make, widths, options, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"mup.coordinate_check: .*{message}"):
        mup.coordinate_check(make, widths, BATCH, **({"optimizer": optlab.sgd(0.1)} | options))
