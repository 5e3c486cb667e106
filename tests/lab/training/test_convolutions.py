"""Convolutions in loops are computed as outside of them, whatever their layout."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from optlab.lab.training._convolutions import with_fast_convolutions

FAST = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
"""The layout (batch, height, width, features) of XLA's fast convolution."""


def convolutions(function, *args):
    """Return the dimension numbers of all convolutions in the program of a function."""
    text = str(jax.make_jaxpr(function)(*args))
    numbers = re.findall(r"lhs_spec=(\(.*?\)), rhs_spec=(\(.*?\)), out_spec=(\(.*?\))", text)
    return [lax.ConvDimensionNumbers(*map(eval, specs)) for specs in numbers]


def loss(kernels, images):
    for kernel in kernels:
        layout = ("NHWC", "HWIO", "NHWC")
        images = lax.conv_general_dilated(images, kernel, (2, 2), "SAME", dimension_numbers=layout)
        images = jax.nn.relu(images)
    return jnp.sum(images**2)


def update(kernels, images):
    grads = jax.grad(loss)(kernels, images)
    return jax.tree.map(lambda kernel, grad: kernel - 1e-3 * grad, kernels, grads)


@pytest.fixture(scope="module")
def kernels():
    rng = np.random.default_rng(0)
    shapes = (3, 3, 2, 4), (3, 3, 4, 3)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(1).normal(size=(3, 8, 8, 2)), jnp.float32)


def test_updates_in_a_loop_are_bit_for_bit_those_of_single_calls(kernels, images):
    fast = with_fast_convolutions(update)
    in_loop = jax.jit(lambda k: lax.fori_loop(0, 3, lambda _, k: fast(k, images), k))(kernels)
    one = jax.jit(update)
    for _ in range(3):
        kernels = one(kernels, images)
    for x, y in zip(in_loop, kernels, strict=True):
        np.testing.assert_array_equal(x, y)


def test_all_convolutions_of_an_update_get_the_fast_layout(kernels, images):
    assert set(convolutions(update, kernels, images)) != {FAST}
    fast = convolutions(with_fast_convolutions(update), kernels, images)
    assert len(fast) == 5  # two forwards, and backwards two for kernels and one for activations
    assert set(fast) == {FAST}


@pytest.mark.parametrize(
    "inside",
    [
        lambda f: lambda k, x: lax.scan(lambda k, _: (f(k, x), None), k, length=2)[0],
        lambda f: lambda k, x: lax.while_loop(lambda k: False, lambda k: f(k, x), k),
        lambda f: lambda k, x: lax.cond(x[0, 0, 0, 0] > 0, f, lambda k, x: k, k, x),
        lambda f: jax.checkpoint(jax.jit(f)),
    ],
    ids=["scan", "while", "cond", "checkpoint"],
)
def test_convolutions_in_nested_programs_get_the_fast_layout(inside, kernels, images):
    fast = convolutions(with_fast_convolutions(inside(update)), kernels, images)
    assert set(fast) == {FAST}


@pytest.mark.parametrize(
    ("specs", "inputs", "kernel", "options"),
    [
        (("NCHW", "OIHW", "NCHW"), (2, 4, 6, 5), (6, 4, 3, 2), {}),
        (("CWNH", "WOHI", "HNCW"), (4, 5, 2, 6), (2, 6, 3, 4), {"rhs_dilation": (2, 1)}),
        (("NHWC", "HWIO", "NHWC"), (2, 6, 5, 4), (3, 2, 2, 6), {"feature_group_count": 2}),
        (("NHWC", "HWIO", "NHWC"), (4, 6, 5, 3), (3, 2, 3, 6), {"batch_group_count": 2}),
        (("HNC", "HIO", "NCH"), (6, 2, 3), (3, 3, 4), {"lhs_dilation": (2,)}),
    ],
    ids=["channels first", "any order", "feature groups", "batch groups", "one dimension"],
)
def test_convolutions_of_any_layout_keep_their_results(specs, inputs, kernel, options):
    rng = np.random.default_rng(0)
    args = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (inputs, kernel)]

    def convolve(inputs, kernel):
        spatial = inputs.ndim - 2
        layout = {"dimension_numbers": specs, "padding": [(1, 2)] * spatial}
        return lax.conv_general_dilated(inputs, kernel, (1,) * spatial, **layout, **options)

    both = jax.jit(lambda *args: (convolve(*args), with_fast_convolutions(convolve)(*args)))
    plain, fast = both(*args)
    # Sums of at most 24 products of normal numbers, in another order: some roundings of 10.
    np.testing.assert_allclose(fast, plain, rtol=0, atol=1e-5)


def test_a_function_without_convolutions_keeps_its_program():
    def function(tree):
        return {"y": lax.scan(lambda c, x: (c + jnp.sin(x), c), 0.0, tree["x"])}

    tree = {"x": jnp.arange(3.0)}
    fast = with_fast_convolutions(function)
    assert str(jax.make_jaxpr(fast)(tree)) == str(jax.make_jaxpr(function)(tree))


def test_other_platforms_get_the_function_itself(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert with_fast_convolutions(update) is update
