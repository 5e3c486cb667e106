"""TensorFlow 1's optimizers (`tf.train`, `tf.contrib.opt`) and `tf.clip_by_global_norm`.

    sgd       a ← μa + g;                          θ ← θ − ηa, or θ − η(g + μa) (Nesterov)
    adagrad   s ← s + g², from 0.1;                θ ← θ − ηg/√s
    rmsprop   s ← ρs + (1 − ρ)g², from *1*;        b ← μb + ηg/√(s + ε);  θ ← θ − b
    adam      m, v averages of g, g²;              θ ← θ − η m̂/(√v̂ + ε/√(1 − β₂ᵗ))
    adamw     adam, and θ ← θ − λθ: the decay is *not* multiplied by the rate

η is `learning_rate`, μ `momentum`, ρ `decay`, ε `epsilon`, λ `weight_decay`; m̂ = m/(1 − β₁ᵗ),
v̂ = v/(1 − β₂ᵗ). The rate stands outside the accumulator of `sgd` and inside that of `rmsprop`.

These follow the documentation and the kernels of TensorFlow 1.15 (`training_ops.cc`) and are
checked against a float64 transcription of them. They were *not* recorded from TensorFlow, which no
longer installs on a current Python.

Arguments have TensorFlow's names, order and defaults; `use_locking` and `name` have no place here.
Every number may be a schedule of the count before the update. The variance of centered RMSProp is
clamped at 0, and finite gradients whose squares overflow count as 2⁶³.

Reference: the TensorFlow 1.15 API documentation; `tensorflow/core/kernels/training_ops.cc`;
`tensorflow/contrib/opt/python/training/weight_decay_optimizers.py`.
"""

import optax

from optlab import _checks
from optlab._types import ArrayLike, Hyperparam
from optlab.dialects._adam import with_eps_hat
from optlab.dialects._common import check, is_zero, step_decay_rules
from optlab.optimizers._adagrad import adagrad_rule
from optlab.optimizers._adam import adam_rule
from optlab.optimizers._momentum import momentum_rules
from optlab.optimizers._rmsprop import rmsprop_rule
from optlab.rules import global_norm_clip, lift
from optlab.rules import learning_rate as learning_rate_rule

__all__ = ["adagrad", "adam", "adamw", "clip_by_global_norm", "rmsprop", "sgd"]

_NONNEGATIVE, _DECAY, _UNIT = _checks.NONNEGATIVE, _checks.DECAY, _checks.UNIT


def sgd(
    learning_rate: Hyperparam, momentum: Hyperparam = 0.0, use_nesterov: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Descend as `tf.train.GradientDescentOptimizer`, with momentum as `MomentumOptimizer`.

    Args:
        learning_rate: η ≥ 0, outside the accumulator.
        momentum: μ in [0, 1]; 0 keeps no accumulator.
        use_nesterov: whether to look ahead along the accumulator.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range, or Nesterov's momentum is 0.
    """
    who = "dialects.tensorflow1.sgd"
    check(who, learning_rate=(learning_rate, _NONNEGATIVE), momentum=(momentum, _UNIT))
    use_nesterov = _checks.check_flag(who, "use_nesterov", use_nesterov)
    if use_nesterov and is_zero(momentum):
        _checks.fail(who, "use_nesterov needs momentum", f"momentum={momentum}")
    return lift(
        *([] if is_zero(momentum) else momentum_rules(who, momentum, nesterov=use_nesterov)),
        learning_rate_rule(who, learning_rate),
    )


def adagrad(
    learning_rate: Hyperparam, initial_accumulator_value: ArrayLike = 0.1
) -> optax.GradientTransformationExtraArgs:
    """Descend as `tf.train.AdagradOptimizer`, which has no ε.

    Args:
        learning_rate: η ≥ 0.
        initial_accumulator_value: where s starts, > 0.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range.
    """
    who = "dialects.tensorflow1.adagrad"
    check(
        who,
        learning_rate=(learning_rate, _NONNEGATIVE),
        initial_accumulator_value=(initial_accumulator_value, _checks.POSITIVE),
    )
    return lift(
        adagrad_rule(who, initial_accumulator_value, eps=0.0),
        learning_rate_rule(who, learning_rate),
    )


def rmsprop(
    learning_rate: Hyperparam,
    decay: Hyperparam = 0.9,
    momentum: Hyperparam = 0.0,
    epsilon: Hyperparam = 1e-10,
    *,
    centered: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `tf.train.RMSPropOptimizer`: s from 1, ε inside the root, the rate inside b.

    Args:
        learning_rate: η ≥ 0.
        decay: ρ in [0, 1), of the average of squared gradients.
        momentum: μ in [0, 1]; 0 keeps no velocity.
        epsilon: ε ≥ 0, inside the root, in the unit of the squared gradients.
        centered: whether to divide by the standard deviation.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range.
    """
    who = "dialects.tensorflow1.rmsprop"
    check(
        who,
        learning_rate=(learning_rate, _NONNEGATIVE),
        decay=(decay, _DECAY),
        momentum=(momentum, _UNIT),
        epsilon=(epsilon, _NONNEGATIVE),
    )
    return lift(
        rmsprop_rule(who, decay, epsilon, 1.0, eps_in_sqrt=True, centered=centered),
        learning_rate_rule(who, learning_rate),
        *([] if is_zero(momentum) else momentum_rules(who, momentum)),
    )


def adam(
    learning_rate: Hyperparam = 0.001,
    beta1: Hyperparam = 0.9,
    beta2: Hyperparam = 0.999,
    epsilon: Hyperparam = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `tf.train.AdamOptimizer`: ε is the “epsilon hat” of Kingma & Ba.

    Args:
        learning_rate: η ≥ 0.
        beta1: β₁ in [0, 1).
        beta2: β₂ in [0, 1).
        epsilon: ε ≥ 0, added to √v before its bias is removed.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range.
    """
    who = "dialects.tensorflow1.adam"
    return lift(
        _adam_rule(who, learning_rate, beta1, beta2, epsilon),
        learning_rate_rule(who, learning_rate),
    )


def adamw(
    weight_decay: Hyperparam,
    learning_rate: Hyperparam = 0.001,
    beta1: Hyperparam = 0.9,
    beta2: Hyperparam = 0.999,
    epsilon: Hyperparam = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Descend as `tf.contrib.opt.AdamWOptimizer`, whose decay the rate has no part in.

    Args:
        weight_decay: λ ≥ 0; each update takes the share λ of the weights, whatever the rate. Where
            the rate follows a schedule, let λ follow it too.
        learning_rate: η ≥ 0.
        beta1: β₁ in [0, 1).
        beta2: β₂ in [0, 1).
        epsilon: ε ≥ 0, added to √v before its bias is removed.

    Returns:
        The optimizer.

    Raises:
        ValueError: a number is out of its range.
    """
    who = "dialects.tensorflow1.adamw"
    check(who, weight_decay=(weight_decay, _NONNEGATIVE))
    return lift(
        _adam_rule(who, learning_rate, beta1, beta2, epsilon),
        learning_rate_rule(who, learning_rate),
        *step_decay_rules(who, weight_decay, times_rate=False),
    )


def _adam_rule(who, learning_rate, beta1, beta2, epsilon):
    check(
        who,
        learning_rate=(learning_rate, _NONNEGATIVE),
        beta1=(beta1, _DECAY),
        beta2=(beta2, _DECAY),
        epsilon=(epsilon, _NONNEGATIVE),
    )
    return with_eps_hat(adam_rule(who, beta1, beta2, epsilon))


def clip_by_global_norm(clip_norm: Hyperparam) -> optax.GradientTransformationExtraArgs:
    """Clip as `tf.clip_by_global_norm`: g · c/max(‖g‖, c).

    Args:
        clip_norm: c ≥ 0, a bound on √(Σ g²) over all leaves.

    Returns:
        The transformation, for the front of a chain. Where the norm is not finite the gradients
        pass unchanged (TensorFlow makes all NaN).

    Raises:
        ValueError: the bound is negative or not finite.
    """
    check("dialects.tensorflow1.clip_by_global_norm", clip_norm=(clip_norm, _NONNEGATIVE))
    return lift(global_norm_clip("dialects.tensorflow1.clip_by_global_norm", clip_norm))
