"""Names on paths: what they say of an array, and the patterns that match them."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen, nnx

import optlab
from optlab import rules
from optlab.rules import Axes, Rule, lift, meaning, paths_matching, paths_not_matching

DENSE = Axes((0,), (1,))


@pytest.mark.parametrize(
    ("path", "shape", "role", "axes"),
    [
        ("Dense_0/kernel", (3, 4), "matrix", DENSE),
        ("w1", (3, 4), "matrix", DENSE),
        ("layers_0/mlp/kernel", (8, 16), "matrix", DENSE),
        ("layers/0/mlp/kernel", (8, 16), "matrix", DENSE),
        ("layers/1/weight", (4, 8), "matrix", Axes((1,), (0,))),
        ("attention/query_proj/weight", (8, 8), "matrix", Axes((1,), (0,))),
        ("layers/mlp/kernel", (6, 8, 16), "matrix", Axes((1,), (2,), (0,))),
        ("ScanBlock_0/mlp/kernel", (6, 8, 16), "matrix", Axes((1,), (2,), (0,))),
        ("moe/experts/w1", (8, 16, 32), "matrix", Axes((1,), (2,), (0,))),
        ("layers/moe/w1", (4, 8, 16, 32), "matrix", Axes((2,), (3,), (0, 1))),
        ("MultiHeadDotProductAttention_0/query/kernel", (8, 2, 4), "matrix", Axes((0,), (1, 2))),
        ("attn/out/kernel", (2, 4, 8), "matrix", Axes((0, 1), (2,))),
        ("layers/attn/query/kernel", (6, 8, 2, 4), "matrix", Axes((1,), (2, 3), (0,))),
        ("self_attn/key/kernel", (6, 8, 2, 4), "matrix", Axes((1,), (2, 3), (0,))),
        ("h/0/attn/c_attn/kernel", (8, 24), "matrix", Axes((0,), (1,), split=(8, 8, 8))),
        ("attn/qkv/weight", (24, 8), "matrix", Axes((1,), (0,), split=(8, 8, 8))),
        ("attn/qkv/kernel", (8, 3, 8), "matrix", Axes((0,), (2,), (1,))),
        ("attn/qkv/kernel", (8, 3, 2, 4), "matrix", Axes((0,), (2, 3), (1,))),
        ("Conv_1/kernel", (3, 3, 8, 16), "matrix", Axes((0, 1, 2), (3,))),
        ("conv/weight", (16, 8, 3, 3), "matrix", Axes((1, 2, 3), (0,))),
        ("conv1d/kernel", (3, 8, 16), "matrix", Axes((0, 1), (2,))),
        ("Conv_0/kernel", (3, 3, 1, 16), "input", Axes((0, 1, 2), (3,))),
        ("stem/conv/weight", (16, 3, 3, 3), "input", Axes((1, 2, 3), (0,))),
        ("wte/embedding", (50, 8), "embedding", DENSE),
        ("Embed_0/embedding", (50, 8), "embedding", DENSE),
        ("pos_embed", (1, 7, 8), "embedding", Axes((0, 1), (2,))),
        ("cls_token", (1, 1, 8), "embedding", Axes((0, 1), (2,))),
        ("lm_head/kernel", (8, 50), "head", DENSE),
        ("mlp_head/dense/kernel", (8, 8), "head", DENSE),
        ("logits_dense/kernel", (8, 50), "head", DENSE),
        ("unembed/weight", (50, 8), "head", Axes((1,), (0,))),
        ("layers/mlp/bias", (6, 8), "other", Axes()),
        ("layers/norm/scale", (6, 8), "other", Axes()),
        ("norm/weight", (3, 4), "other", Axes()),
        ("ln_1/weight", (3, 4), "other", Axes()),
        ("Dense_0/kernel", (1, 4), "other", DENSE),
        ("theta", (4,), "other", Axes()),
        ("layers/gain", (12, 64), "other", Axes()),
        ("layers/A_log", (12, 64), "other", Axes()),
        ("layers/attn/q_bias", (12, 64), "other", Axes()),
        ("experts/bias_in", (12, 64), "other", Axes()),
        ("attn/qkv/kernel", (3, 8, 2, 4), "matrix", Axes((1,), (2, 3), (0,))),
        ("attn/qkv/kernel", (8, 2, 3, 4), "matrix", Axes((0,), (1, 3), (2,))),
        ("attn/Wqkv/kernel", (8, 24), "matrix", Axes((0,), (1,), split=(8, 8, 8))),
        ("attn/in_proj_weight", (24, 8), "matrix", Axes((1,), (0,), split=(8, 8, 8))),
        ("attn/kv/kernel", (8, 16), "matrix", Axes((0,), (1,), split=(8, 8))),
        ("attn/q_proj/kernel", (8, 2, 4), "matrix", Axes((0,), (1, 2))),
        ("conv_block/attn/query/kernel", (8, 2, 4), "matrix", Axes((0,), (1, 2))),
        ("prenorm_block/dense/kernel", (3, 4), "matrix", DENSE),
        ("token_mixing/Dense_0/kernel", (3, 4), "matrix", DENSE),
        ("mlp/output/kernel", (3, 4), "matrix", DENSE),
    ],
)
def test_names_say_what_an_array_is_for(path, shape, role, axes):
    said = meaning(path, shape)
    assert (said.role, said.axes, said.doubt) == (role, axes, "")


@pytest.mark.parametrize(
    ("path", "shape", "doubt"),
    [
        ("tower/kernel", (3, 8, 16), "its first axis is taken for a stack of layers"),
        ("attn/qkv/kernel", (8, 12), "it looks like fused maps of attention"),
        ("attn/qkv_einsum/w", (3, 8, 96, 16), "the operand of an einsum"),
        ("mixer/kernel", (3, 8, 96, 16), "taken for the kernel of a convolution"),
        ("cell/weight_hh", (48, 16), "the gates of a cell side by side"),
        ("output/kernel", (8, 50), "its name may be that of a head"),
    ],
)
def test_a_doubtful_name_says_why(path, shape, doubt):
    assert doubt in meaning(path, shape).doubt


def touched(params, **options):
    """Return the paths that a rule on hidden matrices touches."""
    rule = Rule(
        "mine",
        lambda g, slots, h, p, *facts: (g, slots),
        static=lambda leaf: leaf.axes,
        where=lambda leaf: leaf.is_hidden_matrix,
        **options,
    )
    return {one.path for one in optlab.describe(lift(rule), params) if one.rules}


class Block(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(5, 8, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)


def test_hidden_matrices_of_an_nnx_model_are_found():
    names = ("query", "key", "value", "out")
    assert touched(nnx.state(Block(), nnx.Param)) == {f"attn/{name}/kernel" for name in names}


def test_hidden_matrices_of_a_scanned_linen_model_are_found():
    class Layer(linen.Module):
        @linen.compact
        def __call__(self, x, _):
            return linen.LayerNorm()(linen.Dense(4)(x)), None

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            layers = linen.scan(
                Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            return linen.Dense(2, name="head")(layers(name="layers")(x, None)[0])

    params = jax.eval_shape(Model().init, jax.random.key(0), jnp.ones((1, 4)))
    assert touched(params) == {"params/layers/Dense_0/kernel"}


def test_axes_are_asked_for_by_pattern():
    params = {"head": {"kernel": jnp.ones((3, 4))}, "a": jnp.ones((2, 3)), "b": jnp.ones((2, 3))}
    assert touched(params, axes={"head": DENSE, "b": Axes()}) == {"head/kernel", "a"}


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"haed": DENSE}, "'haed', which matches none; did you mean head"),
        ({"w": Axes((0,), (2,))}, r"must name each axis of the shape \(3, 4\) once"),
        ({"w": Axes((0,), (0, 1))}, "must name each axis"),
        ({"w": Axes((0, 1))}, "must have both an input and an output"),
        ({"w": Axes((0,), (1,), split=(2, 3))}, "sizes >= 1 that add up to its output, 4"),
        ({"w": (0, 1)}, "must be an optlab.rules.Axes of tuples"),
        ({"(": DENSE}, "patterns must be regular expressions"),
        ({3: DENSE}, "patterns must be strings"),
        ("w", "axes must be a function of path and shape, or a mapping"),
    ],
)
def test_bad_axes_are_refused(axes, message):
    params = {"head": {"kernel": jnp.ones((3, 4))}, "w": jnp.ones((3, 4))}
    with pytest.raises(ValueError, match=message):
        touched(params, axes=axes)


def test_patterns_match_whole_names():
    params = {"head": {"kernel": 1.0}, "heads": {"kernel": 1.0}, "a": {"norm1": {"scale": 1.0}}}
    assert paths_matching("head", ".*norm.*/scale")(params) == {
        "head": {"kernel": True},
        "heads": {"kernel": False},
        "a": {"norm1": {"scale": True}},
    }
    inverse = jax.tree.map(lambda x: not x, paths_matching("head")(params))
    assert paths_not_matching("head")(params) == inverse


def test_a_mask_by_pattern_fits_optax_and_nnx():
    state = nnx.state(Block(), nnx.Param)
    tx = optax.chain(optlab.adamw(0.1, weight_decay=0.5, mask=paths_matching("kernel")))
    grads = jax.tree.map(jnp.zeros_like, state)
    updates, _ = tx.update(grads, tx.init(state), state)
    assert float(jnp.abs(updates["head"]["kernel"][...]).max()) > 0
    assert float(jnp.abs(updates["embed"]["embedding"][...]).max()) == 0


def test_a_pattern_that_matches_nothing_is_refused_where_it_is_used():
    tx = optlab.adamw(0.1, mask=paths_not_matching("baises"))
    with pytest.raises(ValueError, match=r"'baises', which matches none; did you mean .*biases"):
        tx.init({"biases": jnp.ones(3), "w": jnp.ones((3, 2))})


def test_matrices_and_back_are_the_same_array():
    x = jnp.arange(2.0 * 3 * 4 * 12).reshape(2, 3, 4, 12)
    for axes in (
        Axes((0, 1, 2), (3,)),
        Axes((3,), (1, 0), (2,)),
        Axes((1, 2), (3,), (0,), split=(4, 4, 4)),
        Axes((0, 2), (3,), (1,), split=(6, 4, 2)),
    ):
        stacks = rules.matrices(x, axes)
        assert (rules.from_matrices(stacks, x.shape, axes) == x).all()
    stack = rules.matrices(x, Axes((1, 2), (3,), (0,), split=(4, 4, 4)))[0]
    assert (stack[1, 2] == x[1].reshape(12, 12)[:, 8:]).all()


def test_describe_shows_what_a_chain_does_with_each_parameter():
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    masked = optax.masked(optlab.adamw(lambda t: 0.5), {"w": True, "b": False})
    text = str(optlab.describe(optax.chain(masked, optax.trace(0.9)), params)).splitlines()
    assert text[1].split() == ["b", "(3,)", "TraceState", "-", "-", "-", "12"]
    assert "adam + TraceState  -     schedule from 0.5  0.01            72" in text[2]
    assert text[3].split() == ["in", "all", "84"]


def test_describe_says_the_same_again():
    params, tx = {"w": jnp.ones((2, 3))}, optlab.adamw(0.1)
    assert optlab.describe(tx, params) == optlab.describe(tx, params)
    assert optlab.describe(tx, params)[0].rules == ("adam",)


def test_describe_refuses_what_is_no_transformation():
    with pytest.raises(ValueError, match=r"tx must be an optax\.Gradient"):
        optlab.describe(optlab.adamw, {"w": jnp.ones(3)})
