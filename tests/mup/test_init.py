"""The first numbers of a wide model have the sizes that μP says, whatever the initializers do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optlab import mup

M = 4


def drawn(width, power, seed=0):
    """Return parameters whose sizes fall with this power of the width."""
    rng = np.random.default_rng(seed)
    shapes = {"stem": (6, width), "dense": (width, width), "head": (width, 3)}
    params = {
        name: {"kernel": jnp.asarray(rng.normal(size=shape) * width**power, jnp.float32)}
        for name, shape in shapes.items()
    }
    return params | {"norm": {"scale": jnp.ones(width), "bias": jnp.zeros(width)}}


def size(array):
    return float(np.sqrt(np.mean(np.square(np.asarray(array, np.float64)))))


@pytest.mark.parametrize("power", [-0.5, 0.0])
@pytest.mark.parametrize(("coding", "head"), [("multiplier", 1), ("plain", 1 / M)])
def test_sizes_are_those_of_the_base_model_times_the_published_factors(coding, head, power):
    base, wide = drawn(8, power), drawn(8 * M, power, seed=1)
    params = mup.init(wide, base, coding=coding)
    want = {"stem": 1, "dense": M**-0.5, "head": head}
    for name, factor in want.items():
        got, before = params[name]["kernel"], wide[name]["kernel"]
        # Sums and products in float32.
        assert size(got) == pytest.approx(factor * size(base[name]["kernel"]), rel=1e-5)
        assert got.dtype == before.dtype
        np.testing.assert_allclose(
            got / before, np.full(got.shape, float((got / before)[0, 0])), 1e-5
        )
    assert jax.tree.map(lambda a, b: bool((a == b).all()), params["norm"], wide["norm"])


def test_the_norms_of_a_wide_model_stay_ones_and_zeros():
    params = mup.init(drawn(8 * M, 0.0), drawn(8, 0.0))
    assert (params["norm"]["scale"] == 1).all()
    assert (params["norm"]["bias"] == 0).all()


def test_what_is_named_begins_at_zero():
    params = mup.init(drawn(8 * M, 0.0), drawn(8, 0.0), zero=["head"])
    assert (params["head"]["kernel"] == 0).all()
    assert size(params["stem"]["kernel"]) > 0


def shapes_of(tree):
    return jax.eval_shape(lambda: tree)


WIDE, BASE = drawn(8 * M, 0.0), drawn(8, 0.0)
REFUSED = {
    "a base of shapes": (WIDE, shapes_of(BASE), {}, "base and params must hold numbers"),
    "shapes": (shapes_of(WIDE), BASE, {}, "base and params must hold numbers"),
    "another coding": (WIDE, BASE, {"coding": "table 3"}, "coding must be one of"),
    "a wrong pattern": (WIDE, BASE, {"zero": ["haed"]}, "did you mean head"),
    "a pattern alone": (
        WIDE,
        BASE,
        {"zero": "head"},
        r"sequence of strings, got 'head'; write \['",
    ),
    "zeros": (jax.tree.map(jnp.zeros_like, WIDE), BASE, {}, "must not be 0 throughout"),
    "another structure": (WIDE, {"stem": BASE["stem"]}, {}, "each parameter must have its"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused(case):
    params, base, options, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"mup.init: .*{message}"):
        mup.init(params, base, **options)
