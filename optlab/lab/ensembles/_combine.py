"""Combine the predictions of several models of the same classes.

    probability   log p̄ = logsumexp_m(log p_m) − log M
    logit         log p̄ = log_softmax(Σ_m log p_m / M)

log p_m = log_softmax(z_m) are the log-probabilities of model m, of M models with logits z_m. The
mean of the probabilities is never formed itself: where every model gives less than 1e-45, it would
be 0 in float32, and its logarithm −∞. The mean of log-probabilities and that of logits give the
same result, because a softmax ignores a constant. It is sharper than the mean of probabilities.

Reference: Lakshminarayanan, Pritzel, Blundell, NeurIPS (2017) for the mean of probabilities;
Rahaman & Thiery, NeurIPS (2021) on what each does to calibration.
"""

import math

import jax
import jax.numpy as jnp

from optlab import _checks
from optlab._types import Array, ArrayLike

HOW = ("probability", "logit")
"""The means that `combine_log_probs` knows."""


def combine_log_probs(logits: ArrayLike, axis: int = 0, how: str = "probability") -> Array:
    """Return the log-probabilities of an ensemble.

    Args:
        logits: (members, n, classes) float, logits or log-probabilities; the classes are the last
            axis, and there may be any number of others.
        axis: the axis of the members, any but the last.
        how: "probability" for the mean of the members' probabilities; "logit" for that of their
            logits, which is sharper.

    Returns:
        Normalized log-probabilities (n, classes), in at least float32.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.0, 1.0, -3.0]])
        >>> for how in ("probability", "logit"):
        ...     print([f"{p:.3f}" for p in jnp.exp(combine_log_probs(logits, how=how))])
        ['0.555', '0.418', '0.028']
        ['0.604', '0.366', '0.030']
    """
    who = "combine_log_probs"
    _checks.check_choice(who, "how", how, HOW)
    logits = jnp.asarray(logits)
    _check_logits(who, logits)
    members = range(-logits.ndim, logits.ndim)
    if isinstance(axis, bool) or axis not in members or axis in (-1, logits.ndim - 1):
        required = f"axis must be an axis of the members, any of {logits.ndim} but the last"
        _checks.fail(who, required, f"axis={axis!r}", "the last axis holds the classes")
    log_probs = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    if how == "logit":
        return jax.nn.log_softmax(log_probs.mean(axis))
    return jax.nn.logsumexp(log_probs, axis=axis) - math.log(logits.shape[axis])


def _check_logits(who: str, logits: Array) -> None:
    """Require floating-point logits of two axes or more, none of them empty."""
    floating = jnp.issubdtype(logits.dtype, jnp.floating)
    if not floating or logits.ndim < 2 or 0 in logits.shape:
        got = f"{logits.dtype}{list(logits.shape)}"
        required = "logits must be floating-point numbers (members, …, classes)"
        _checks.fail(who, required, got)
