"""Muon: worked numbers, the identities of an orthogonal factor, and what is treated how."""

import itertools
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab import reference
from optlab.rules import Axes, newton_schulz_coefficients, orthogonalized
from optlab.rules._newton_schulz import polar_express

JORDAN = newton_schulz_coefficients("test", "keller_jordan", 5)
rng = np.random.default_rng(0)

# Rounding of products in float32, which five steps multiply; measured at most 5e-5 of the largest
# element where singular values spread over four decades.
FLOAT32 = 1e-4

# The same products of small, well conditioned matrices in another order or another shape.
FEW_ROUNDINGS = 2e-6

# Products with rotations before and after, or ten steps to an exact factor, add as many again.
MORE_ROUNDINGS = 1e-5


def matrix(*shape, smallest=0.1):
    """A matrix (…, m, n) whose singular values go from 1 to `smallest`."""
    u, _, vt = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    return (u * np.logspace(0, np.log10(smallest), min(shape[-2:]))) @ vt


# Newton–Schulz


def test_the_worked_example_of_a_diagonal():
    with jax.enable_x64(True):
        got = orthogonalized(jnp.diag(jnp.array([3.0, 4.0])), JORDAN, 0.0)
    np.testing.assert_allclose(np.diag(got), [0.7228761686, 1.1192039299], rtol=1e-9)


def test_two_updates_of_the_worked_example():
    # Keller Jordan's arithmetic on (out, in); here (in, out), so that the arrays are transposed.
    tx = optlab.muon(0.1, weight_decay=0.1, scale="keller_jordan")
    params = {"w": jnp.ones((3, 2))}
    state = tx.init(params)
    for gradient in ([[1.0, 2, 0], [0, 1, -1]], [[0.0, 1, 1], [2, 0, 1]]):
        updates, state = tx.update({"w": jnp.array(gradient).T}, state, params)
        params = optax.apply_updates(params, updates)
    expected = [[0.9338350, 0.8464660, 0.9138903], [0.9288754, 0.9474055, 1.0546809]]
    np.testing.assert_allclose(params["w"].T, expected, rtol=FEW_ROUNDINGS)


def test_polar_express_has_the_published_coefficients():
    published = reference._muon._SETS["polar_express"]
    # The eighth row was published in round numbers.
    np.testing.assert_allclose(polar_express(8), published, rtol=1e-8)
    np.testing.assert_allclose(polar_express(7), published[:7], rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "steps", "smallest", "image"),
    [
        ("keller_jordan", 5, 0.01, (0.682, 1.134)),
        ("keller_jordan", 5, 0.001, (0.4705, 1.2024)),
        ("you", 5, 0.01, (0.978, 1.032)),
        ("polar_express", 5, 0.001, (0.876, 1.124)),
        ("polar_express", 8, 0.001, (1.0, 1.0)),
    ],
)
def test_singular_values_end_where_the_docstring_says(name, steps, smallest, image):
    x = np.logspace(np.log10(smallest), 0, 2001)
    for a, b, c in newton_schulz_coefficients("test", name, steps):
        x = a * x + b * x**3 + c * x**5
    np.testing.assert_allclose([x.min(), x.max()], image, atol=5e-4)


@pytest.mark.parametrize("shape", [(30, 30), (24, 96), (96, 24), (2, 3, 8, 20)], ids=str)
@pytest.mark.parametrize("name", ["keller_jordan", "polar_express"])
def test_every_form_maps_the_singular_values(name, shape):
    """Square, wide and tall in the Gram form, and stacks."""
    x = matrix(*shape, smallest=1e-4)
    rows = newton_schulz_coefficients("test", name, 6)
    got = jax.jit(lambda x: orthogonalized(x, rows, 1e-7))(jnp.asarray(x, jnp.float32))
    want = reference.orthogonalized(x, name, 6, 1e-7)
    # Small singular values grow by the product of all a, and their roundings with them: a few.
    slope = np.prod([a for a, _, _ in rows])
    assert np.abs(got - want).max() <= 3 * slope * np.finfo(np.float32).eps * np.abs(want).max()


def test_the_gram_form_is_exact_in_float64():
    x = matrix(24, 96, smallest=1e-4)
    with jax.enable_x64(True):
        got = np.asarray(orthogonalized(jnp.asarray(x), JORDAN, 1e-7))
    np.testing.assert_allclose(got, reference.orthogonalized(x), atol=1e-12)


@pytest.mark.parametrize("exponent", [-140, -100, -40, 0, 40, 127])
def test_the_factor_does_not_depend_on_the_size_of_the_gradient(exponent):
    x = np.asarray(matrix(4, 6), np.float32)
    x /= np.abs(x).max()
    want = orthogonalized(jnp.asarray(x), JORDAN, 0.0)
    # A power of two leaves the digits as they are: other sizes round each entry of the gradient,
    # and five steps multiply that by up to 3.4445 ** 5.
    got = orthogonalized(jnp.float32(2.0**exponent) * x, JORDAN, 0.0)
    # XLA may take numbers below the smallest normal one for zero.
    want = 0 * want if exponent < -126 else want
    np.testing.assert_allclose(got, want, atol=FEW_ROUNDINGS)


def test_the_factor_of_zero_is_zero_and_what_is_not_finite_shows():
    assert (orthogonalized(jnp.zeros((2, 3)), JORDAN, 0.0) == 0).all()
    for bad in (jnp.nan, jnp.inf):
        x = jnp.ones((2, 2, 3)).at[0, 0, 0].set(bad)
        got = orthogonalized(x, JORDAN, 0.0)
        assert jnp.isnan(got[0]).all()
        assert jnp.isfinite(got[1]).all()


def test_coefficients_of_ones_own_repeat_the_last_row():
    assert newton_schulz_coefficients("test", [(1, 2, 3), (4, 5, 6)], 3) == (
        (1, 2, 3),
        (4, 5, 6),
        (4, 5, 6),
    )


# Identities of Muon


def first_update(params, gradients, **options):
    tx = optlab.scale_by_muon(eps=0.0, **options)
    return tx.update(gradients, tx.init(params))[0]


def test_the_frobenius_norm_is_at_most_that_of_the_largest_singular_values():
    for shape in ((5, 5), (4, 9)):
        update = first_update({"w": jnp.zeros(shape)}, {"w": jnp.asarray(matrix(*shape))})["w"]
        factor = update / (0.2 * max(shape) ** 0.5)
        assert (factor**2).sum() <= 1.45 * min(shape)


def test_with_an_exact_factor_and_no_momentum_it_is_that_of_the_svd():
    g = matrix(4, 6)
    u, _, vt = np.linalg.svd(g, full_matrices=False)
    options = {"beta": 0.0, "ns_coeffs": "polar_express", "ns_steps": 10, "scale": "scion"}
    got = first_update({"w": jnp.zeros((4, 6))}, {"w": jnp.asarray(g)}, **options)["w"]
    np.testing.assert_allclose(got, (6 / 4) ** 0.5 * u @ vt, atol=MORE_ROUNDINGS)


def test_rotations_of_the_gradient_rotate_the_update():
    g, params = matrix(4, 6), {"w": jnp.zeros((4, 6))}
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (4, 6))
    plain = first_update(params, {"w": jnp.asarray(g)})["w"]
    turned = first_update(params, {"w": jnp.asarray(left @ g @ right)})["w"]
    np.testing.assert_allclose(turned, left @ plain @ right, atol=MORE_ROUNDINGS)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ("moonshot", (5.5426, 11.0851, 11.0851)),
        ("keller_jordan", (1, 2, 1)),
        ("scion", (1, 2, 0.5)),
    ],
)
def test_scales_side_by_side(scale, expected):
    factor = optlab.optimizers._muon.SCALES[scale]
    got = [factor(768, 768), factor(768, 3072), factor(3072, 768)]
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_stacked_split_and_batched_matrices_equal_single_ones():
    blocks = [np.asarray(matrix(4, 4), np.float32) for _ in range(3)]
    alone = [first_update({"w": jnp.zeros((4, 4))}, {"w": jnp.asarray(b)})["w"] for b in blocks]
    trees = {
        "leaves": ({f"w{i}": b for i, b in enumerate(blocks)}, {}),
        "layers": ({"layers": {"kernel": np.stack(blocks)}}, {}),
        "qkv": ({"qkv": {"kernel": np.concatenate(blocks, axis=1)}}, {}),
        "heads": (
            {"w": np.stack(blocks, axis=1)},
            {"axes": {"w": Axes(input=(0,), output=(2,), batch=(1,))}},
        ),
        "split": (
            {"w": np.concatenate(blocks, axis=1)},
            {"axes": {"w": Axes((0,), (1,), split=(4, 4, 4))}},
        ),
    }
    for name, (tree, options) in trees.items():
        tree = jax.tree.map(jnp.asarray, tree)
        (*updates,) = jax.tree.leaves(first_update(tree, tree, **options))
        got = {
            "leaves": lambda u: u,
            "layers": lambda u: u[0],
            "qkv": lambda u: jnp.split(u[0], 3, axis=1),
            "heads": lambda u: [u[0][:, i] for i in range(3)],
            "split": lambda u: jnp.split(u[0], 3, axis=1),
        }[name](updates)
        for one, want in zip(got, alone, strict=True):
            np.testing.assert_allclose(one, want, atol=FEW_ROUNDINGS, err_msg=name)


def test_a_convolution_is_one_matrix_with_the_scale_of_its_flattened_shape():
    kernel = np.asarray(rng.normal(size=(3, 3, 8, 16)), np.float32)
    conv = {"conv": {"kernel": jnp.asarray(kernel)}}
    flat = {"w": jnp.asarray(kernel.reshape(72, 16))}
    got = first_update(conv, conv, scale="scion")["conv"]["kernel"]
    want = first_update(flat, flat, scale="scion")["w"]
    np.testing.assert_allclose(got.reshape(72, 16), want, atol=FEW_ROUNDINGS)


def test_parts_of_unequal_size_are_split_and_scaled_each():
    q, kv = (np.asarray(matrix(4, n), np.float32) for n in (4, 2))
    fused = {"w": jnp.concatenate([q, kv, kv], axis=1)}
    axes = {"w": Axes((0,), (1,), split=(4, 2, 2))}
    got = first_update(fused, fused, axes=axes, scale="scion")["w"]
    for columns, part in ((slice(4), q), (slice(4, 6), kv), (slice(6, 8), kv)):
        want = first_update({"w": part}, {"w": jnp.asarray(part)}, scale="scion")["w"]
        np.testing.assert_allclose(got[:, columns], want, atol=FEW_ROUNDINGS)


# Who gets what

MODEL = {
    "embed": {"embedding": jnp.ones((9, 4))},
    "layers": {"mlp": {"kernel": jnp.ones((2, 4, 8)), "bias": jnp.ones((2, 8))}},
    "norm": {"scale": jnp.ones(4)},
    "head": {"kernel": jnp.ones((4, 9))},
}


def test_other_parameters_get_adamw():
    tx = optlab.muon(0.1, adam_b2=0.9, weight_decay=0.3)
    adamw = optlab.adamw(0.1, b2=0.9, weight_decay=0.3)
    gradients = jax.tree.map(jnp.cos, MODEL)
    got, _ = tx.update(gradients, tx.init(MODEL), MODEL)
    want, _ = adamw.update(gradients, adamw.init(MODEL), MODEL)
    for name in ("embed", "norm", "head"):
        np.testing.assert_array_equal(jax.tree.leaves(got[name]), jax.tree.leaves(want[name]))
    np.testing.assert_array_equal(got["layers"]["mlp"]["bias"], want["layers"]["mlp"]["bias"])


def test_rates_and_decays_of_both_kinds_are_read_and_replaced_apart():
    tx = optlab.muon(0.1, adam_learning_rate=0.2, weight_decay=0.3, adam_weight_decay=0.0)
    state = tx.init(MODEL)
    values = {name: float(value) for name, value in optlab.hyperparams(state).items()}
    assert (values["learning_rate"], values["adam_learning_rate"]) == pytest.approx((0.1, 0.2))
    state = optlab.replace_hyperparams(state, adam_learning_rate=0.0)
    updates, _ = tx.update(jax.tree.map(jnp.cos, MODEL), state, MODEL)
    assert (updates["head"]["kernel"] == 0).all()
    assert (updates["layers"]["mlp"]["kernel"] != 0).all()


def test_hidden_matrices_keep_one_array_of_their_size_and_no_more():
    rows = {one.path: one for one in optlab.describe(optlab.muon(0.1), MODEL)}
    hidden = rows["layers/mlp/kernel"]
    assert (hidden.rules, hidden.axes) == (("muon",), Axes((1,), (2,), (0,)))
    assert hidden.state_bytes == 4 * 2 * 4 * 8
    assert {path for path, one in rows.items() if one.rules == ("adam",)} == {*rows} - {
        "layers/mlp/kernel"
    }


def test_a_model_without_hidden_matrices_is_refused():
    with pytest.raises(ValueError, match="muon: there must be a hidden matrix among the"):
        optlab.muon(0.1).init({"head": {"kernel": jnp.ones((3, 4))}, "bias": jnp.ones(3)})


def test_a_complex_matrix_is_refused_and_a_complex_vector_is_not():
    tx = optlab.muon(0.1)
    tx.init({"w": jnp.ones((2, 3)), "phase": jnp.ones(3, jnp.complex64)})
    with pytest.raises(ValueError, match="muon: parameters must be real, got complex64 at"):
        tx.init({"w": jnp.ones((2, 3), jnp.complex64)})


def mlp(*sizes):
    return {
        f"Dense_{i}": {"kernel": jnp.ones((m, n)), "bias": jnp.ones(n)}
        for i, (m, n) in enumerate(itertools.pairwise(sizes))
    }


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        (mlp(64, 64, 64, 10), {}, r"Dense_2/kernel \(64, 10\): no other hidden matrix has"),
        (mlp(500, 64, 64), {}, r"Dense_0/kernel \(500, 64\): no other hidden matrix has its input"),
        (MODEL, {"axes": lambda path, shape: Axes((0,), (1,)) if shape == (4, 9) else None},
         r"head/kernel \(4, 9\): its name is that of a head"),
        (MODEL, {"axes": {"embedding": Axes((0,), (1,))}}, "its name is that of an embedding"),
        (
            {
                "wte": {"embedding": jnp.ones((50, 4))},
                "mlp": {"up": {"kernel": jnp.ones((4, 8))}, "down": {"kernel": jnp.ones((8, 4))}},
                "last": {"kernel": jnp.ones((4, 50))},
            },
            {},
            r"last/kernel \(4, 50\): no other hidden matrix has its output of 50",
        ),
        ({"tower": {"kernel": jnp.ones((3, 4, 4))}}, {}, "taken for a stack of layers"),
    ],
)  # fmt: skip
def test_what_looks_like_no_hidden_matrix_is_named_in_a_warning(params, options, message):
    with pytest.warns(UserWarning, match=message):
        optlab.muon(0.1, **options).init(params)


def test_hidden_layers_raise_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optlab.muon(0.1).init(MODEL)
        optlab.muon(0.1).init(mlp(64, 128, 64, 128))
        optlab.muon(0.1).init({"w": jnp.ones((3, 4)), "s": jnp.ones(())})
        optlab.muon(0.1, axes={"Dense_2": Axes()}).init(mlp(64, 64, 64, 10))


# Many devices


@pytest.mark.slow
def test_matrices_on_eight_devices_have_the_updates_of_one():
    program = Path(__file__).with_name("eight_devices.py")
    result = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(result.stdout.splitlines()) == 3 * 6
