"""L1 and group lasso as proximal steps, which make weights exactly 0.

    θ ← argmin_x ½·Σ (x − w)²/D + λ·R(x),    w = θ + u

u is the optimizer's update. D is its *metric*: by how much it multiplies a gradient, the learning
rate with it. Adam's is α/(√v̂ + ε) for each weight, SGD's α, that of momentum α/(1 − β), the sum of
what one gradient does. λ is `strength`.

    R = Σ |x|        l1             x = sign(w)·max(|w| − λD, 0)
    R = Σ ‖x_g‖      group lasso    x = 0 where ‖w/D‖ ≤ λ, else w·r/(r + λD), r the root of

                                    Σ (w/(r + λD))² = 1

With one D for all of a group, the latter is w·max(0, 1 − λD/‖w‖). A threshold of α·λ alone would
leave Adam's metric out, and lead to the minimum of another loss. Adding λ·sign(θ) to the gradient
leads to the right one, but to no zeros: weights swing around 0.

Reference: Duchi, Singer, JMLR 10 (2009), for l1; Yuan, Lin, J. R. Stat. Soc. B 68 (2006), for group
lasso; Yun, Lozano, Yang, NeurIPS (2021), for proximal steps in the metric of adaptive rules.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._types import Array, Hyperparam, Mask
from optlab.rules import Leaf, Rule, number
from optlab.rules._lift import Lifted, lifted

_ITERATIONS = 8
"""Of Newton's method; six suffice for float32 where metrics differ by 10¹² within a group."""


def l1(
    tx: optax.GradientTransformation, strength: Hyperparam, *, mask: Mask | None = None
) -> optax.GradientTransformationExtraArgs:
    """Descend as an optimizer does on the loss plus λ·Σ|θ|, with weights that become exactly 0.

    Each update ends with a soft threshold in the optimizer's own metric, so that it leads to the
    minimum of this sum whatever the optimizer: an L1 penalty (lasso).

    Put it around the optimizer itself, and everything else around or before it:
    `optax.chain(optlab.clip_by_global_norm(1.0), l1(optlab.adam(1e-3), 1e-4))`. Nothing behind it
    may change the updates, or weights would miss 0. `accumulate`, `skip_nonfinite` and
    `master_params` keep zeros exact; `kahan_summation` and averages of the parameters do not.

    The metric of momentum, 1/(1 − β), holds once the velocity has settled. During the first 1/(1 −
    β) updates the threshold is therefore too large for the updates.

    Args:
        tx: an optimizer of optlab whose rules have a metric: `sgd`, `adagrad`, `rmsprop`, `adam`,
            `adamw`, with any options, or one made of rules that declare `Rule.metric`. Decay of
            `adamw` shrinks the weights besides.
        strength: λ ≥ 0, in the unit of the loss divided by that of the parameters; a number, an
            array or a schedule.
        mask: which parameters are penalized: booleans in their structure or a prefix of it, or a
            function of the parameters returning them; None for all. Biases and norms are mostly
            left out.

    Returns:
        The optimizer; its state is that of `tx` and behind it that of this rule, whose
        hyperparameter is `l1_strength`. Its `update` needs the parameters. Of complex parameters
        the real and the imaginary part are two weights.

    Raises:
        ValueError: `tx` is not made of optlab's rules, one of them has no metric, or none has a
            learning rate; λ is negative or not finite; at update, the parameters are missing.

    Example:
        A penalty of 1 takes the small one of two weights to 0, and 1/2 from the large one:

        >>> import jax, jax.numpy as jnp, optax
        >>> from optlab import adam
        >>> target = jnp.array([3.0, 0.3])
        >>> tx = l1(adam(0.05), 1.0)
        >>> params = jnp.zeros(2)
        >>> state = tx.init(params)
        >>> @jax.jit
        ... def step(params, state):
        ...     gradient = 2 * (params - target)
        ...     updates, state = tx.update(gradient, state, params)
        ...     return optax.apply_updates(params, updates), state
        >>> for _ in range(500):
        ...     params, state = step(params, state)
        >>> print(jnp.round(params, 3))
        [2.5 0. ]
    """
    _check_strength("l1", strength)

    def leaf(u: Array, slots: Any, scalars: Any, p: Any) -> tuple[Array, Any]:
        h, metric = scalars
        w, threshold = p + u, _threshold(h.l1_strength, metric)
        # u − sign(w)·λD, and not x − θ, which would round to the digits of θ.
        return jnp.where(jnp.abs(w) <= threshold, -p, u - jnp.sign(w) * threshold), slots

    rule = Rule(
        "l1",
        leaf,
        hyperparams={"l1_strength": number(strength)},
        metric=lambda slots, scalars: 1.0,
        needs_metric=True,
        needs_params=True,
        mask=mask,
        counter="step",
    )
    return lifted((*_rules_of("l1", tx), rule))


def group_lasso(
    tx: optax.GradientTransformation,
    strength: Hyperparam,
    *,
    axis: int | None = -1,
    mask: Mask | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Descend on the loss plus λ·Σ‖θ_g‖ over groups of weights, which become exactly 0 together.

    A group is all weights of one unit or one input, so that it can be taken out of the network. The
    proximal step is that in the optimizer's own metric, as for `l1`, which says where to put it.

    Args:
        tx: an optimizer of optlab whose rules have a metric, as for `l1`.
        strength: λ ≥ 0, as for `l1`, the same for all groups. Yuan and Lin multiply it by the root
            of the number of weights in a group: where arrays differ in that, give each a strength
            by `optax.partition`.
        axis: the axis of each array that numbers its groups. Of a kernel (inputs, outputs), −1
            makes a group of the weights into each output, 0 of those from each input. None for one
            group for each array.
        mask: which parameters are penalized, as for `l1`; arrays of fewer than two axes, such as
            biases, never are.

    Returns:
        The optimizer; its state is that of `tx` and behind it that of this rule, whose
        hyperparameter is `group_lasso_strength`. Its `update` needs the parameters.

    Raises:
        ValueError: as for `l1`; `axis` is no integer; at init, an array has no such axis, or is
            complex.

    Example:
        Of two outputs, the one with small weights is taken out:

        >>> import jax, jax.numpy as jnp, optax
        >>> from optlab import sgd
        >>> target = jnp.array([[3.0, 0.3], [4.0, 0.4]])
        >>> tx = group_lasso(sgd(0.1), 1.0)
        >>> params = jnp.ones((2, 2))
        >>> state = tx.init(params)
        >>> for _ in range(100):
        ...     updates, state = tx.update(params - target, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> print(jnp.round(params, 3))
        [[2.4 0. ]
         [3.2 0. ]]
    """
    who = "group_lasso"
    if axis is not None and (isinstance(axis, bool) or not isinstance(axis, int)):
        _checks.fail(who, "axis must be an integer or None", f"axis={axis!r}")
    _check_strength(who, strength)

    def check_leaves(own: Sequence[Leaf], leaves: Sequence[Leaf]) -> None:
        for facts in own:
            if axis is not None and not -len(facts.shape) <= axis < len(facts.shape):
                _checks.fail(
                    who,
                    f"each array must have the axis {axis}",
                    f"the shape {facts.shape} at {facts.path}",
                    "leave it out by mask=",
                )

    def leaf(u: Array, slots: Any, scalars: Any, p: Any) -> tuple[Array, Any]:
        h, metric = scalars
        own = None if axis is None else axis % p.ndim
        others = tuple(i for i in range(p.ndim) if i != own)
        w = p + u
        threshold = jnp.broadcast_to(_threshold(h.group_lasso_strength, metric), w.shape)
        shrink = _group_shrinkage(w, threshold, others)
        return jnp.where(shrink >= 1, -p, u - w * shrink), slots

    rule = Rule(
        who,
        leaf,
        hyperparams={"group_lasso_strength": number(strength)},
        metric=lambda slots, scalars: 1.0,
        needs_metric=True,
        needs_params=True,
        mask=mask,
        where=lambda facts: len(facts.shape) > 1,
        check_leaves=check_leaves,
        complex="refused",
        counter="step",
    )
    return lifted((*_rules_of(who, tx), rule))


def _rules_of(who: str, tx: Any) -> tuple[Rule, ...]:
    """Return the rules that an optimizer is made of."""
    if not isinstance(tx, Lifted):
        _checks.fail(
            who,
            "tx must be an optimizer of optlab, whose metric is known",
            type(tx).__name__,
            f"put {who} around the optimizer itself, as in optax.chain(clip, {who}(optlab.adam(...)"
            ", strength))",
        )
    if not any("learning_rate" in rule.hyperparams for rule in tx.rules):
        _checks.fail(
            who,
            "tx must have a learning rate, since the proximal step follows the whole update",
            f"only {' and '.join(rule.kind or rule.who for rule in tx.rules)}",
            "put it around the optimizer, such as optlab.adam(1e-3), and not around its direction",
        )
    return tx.rules


def _check_strength(who: str, strength: Hyperparam) -> None:
    """Require a strength; the error has the argument's name, which is not that in the state."""
    if not callable(strength):
        kinds = "a number, a scalar array or a schedule"
        _checks.check_number(who, "strength", strength, _checks.NONNEGATIVE, kinds=kinds)


def _threshold(strength: Array, metric: Array) -> Array:
    """Return λD, 0 for λ = 0 where D is infinite."""
    return jnp.where(strength > 0, strength * metric, 0)


def _group_shrinkage(w: Array, threshold: Array, axes: tuple[int, ...]) -> Array:
    """Return λD/(r + λD), by which a proximal step makes each weight smaller; 1 for a group of 0.

    Newton's method on 1/√(Σ (w/(r + λD))²) = 1, whose left side is concave in r and rises. So it
    goes up to the root from r = 0, and from the bound ‖w‖ − max λD. With one D for all, the left
    side is linear, and a single step is exact.
    """

    def total(x: Array) -> Array:
        return jnp.sum(x, axes, keepdims=True)

    def quotient(a: Array, b: Array) -> Array:
        return jnp.where(a == 0, 0, a / jnp.where(a == 0, 1, b))

    norm = jnp.sqrt(total(jnp.square(w)))
    # Thresholds below the digits of the weights would overflow as divisors.
    q = jnp.maximum(threshold, norm * 1e-9)
    vanishes = total(jnp.square(quotient(w, q))) <= 1

    def newton(_: Any, r: Array) -> Array:
        sizes = r + q
        parts = jnp.square(quotient(w, sizes))
        sum_, slope = total(parts), total(quotient(parts, sizes))
        return r + quotient(sum_, slope) * (jnp.sqrt(sum_) - 1)

    start = jnp.maximum(norm - jnp.max(q, axes, keepdims=True, initial=0), 0)
    r = jax.lax.fori_loop(0, _ITERATIONS, newton, start)
    shrink = jnp.where(vanishes, 1, quotient(q, r + q))
    return jnp.where((threshold > 0) | jnp.isnan(w), shrink, 0).astype(w.dtype)
