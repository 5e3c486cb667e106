"""Judge predicted probabilities: error, likelihood, calibration, and one temperature for them.

    error   share of examples whose most probable class is not their label
    NLL     mean of −log p_y
    Brier   mean of Σ_c (p_c − [c = y])²
    ECE     Σ_b (n_b / n) · |accuracy_b − confidence_b|

p are the probabilities of an example and y is its label. The confidence is the probability of the
most probable class; bin b of B holds the n_b examples with a confidence in (b/B, (b+1)/B], and
accuracy_b and confidence_b are means over it. With few examples the ECE is too large, because
accuracies in bins of few examples scatter; it should be read beside the NLL and the Brier score,
which are smallest in expectation where the probabilities are the true ones.

A temperature T replaces log p by log_softmax(log p / T): T > 1 for a model that is too sure of
itself. As a function of 1/T the NLL is convex, and its derivative is

    d NLL / d(1/T) = mean of (Σ_c p_c(T) log p_c − log p_y).

Reference: Guo, Pleiss, Sun, Weinberger, ICML (2017); Naeini, Cooper, Hauskrecht, AAAI (2015).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._types import Array, ArrayLike

BINS = 15
"""The usual number of bins of a calibration error."""

LEAST_TEMPERATURE, LARGEST_TEMPERATURE = 0.01, 100.0
"""The range of temperatures that `fit_temperature` may return."""

_MOST_STEPS = 100
_TOLERANCE = 1e-12


class Scores(NamedTuple):
    """How good predicted probabilities are; lower is better in each, and 0 is perfect.

    Attributes:
        error: the share of wrong predictions, in [0, 1].
        nll: the negative log-likelihood of a label, in nats, as the mean over examples.
        brier: the squared distance to the label as a vector of 0 and 1, in [0, 2].
        ece: the expected calibration error, in [0, 1].
    """

    error: ArrayLike
    nll: ArrayLike
    brier: ArrayLike
    ece: ArrayLike


class Reliability(NamedTuple):
    """The bins of a reliability diagram.

    Attributes:
        confidence: (bins,) float, the mean probability of the most probable class; 0 in a bin
            without examples.
        accuracy: (bins,) float, the share of examples with that class; 0 without examples.
        share: (bins,) float, the share of all examples that fall into the bin.
    """

    confidence: Array
    accuracy: Array
    share: Array


def scores(log_probs: ArrayLike, labels: ArrayLike, bins: int = BINS) -> Scores:
    """Return error, negative log-likelihood, Brier score and calibration error.

    It works under `jit` and `vmap`.

    Args:
        log_probs: (n, classes) float, log-probabilities or logits.
        labels: (n,) int, in [0, classes).
        bins: bins of the calibration error, of equal width, ≥ 1.

    Returns:
        Four () arrays, in at least float32.

    Raises:
        ValueError: an argument has the wrong shape or type, or is out of its range.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.8, 0.2], [0.6, 0.4]]))
        >>> [round(float(score), 4) for score in scores(log_probs, jnp.array([0, 1]), bins=10)]
        [0.5, 0.5697, 0.4, 0.4]
    """
    _check("scores", log_probs, labels)
    log_probs, labels = _normalized(log_probs), jnp.asarray(labels)
    of_label = jnp.take_along_axis(log_probs, labels[:, None], axis=1)[:, 0]
    probs = jnp.exp(log_probs)
    # Σ_c (p_c − [c = y])² without the vector of the label.
    brier = (probs**2).sum(1) - 2 * jnp.exp(of_label) + 1
    confidence, accuracy, share = reliability(log_probs, labels, bins)
    return Scores(
        error=(log_probs.argmax(1) != labels).mean(dtype=log_probs.dtype),
        nll=-of_label.mean(),
        brier=brier.mean(),
        ece=(share * jnp.abs(accuracy - confidence)).sum(),
    )


def reliability(log_probs: ArrayLike, labels: ArrayLike, bins: int = BINS) -> Reliability:
    """Return accuracy and confidence in bins of equal width, (b/B, (b+1)/B].

    It works under `jit` and `vmap`.

    Args:
        log_probs: (n, classes) float, log-probabilities or logits.
        labels: (n,) int, in [0, classes).
        bins: B ≥ 1.

    Raises:
        ValueError: an argument has the wrong shape or type, or is out of its range.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.8, 0.2], [0.6, 0.4]]))
        >>> confidence, accuracy, share = reliability(log_probs, jnp.array([0, 1]), bins=2)
        >>> print(f"{confidence[1]:.2f}", accuracy, share)
        0.70 [0.  0.5] [0. 1.]
    """
    _check("reliability", log_probs, labels)
    log_probs, labels = _normalized(log_probs), jnp.asarray(labels)
    bins = _checks.check_count("reliability", "bins", bins, 1)
    confidence = jnp.exp(log_probs.max(1))
    right = (log_probs.argmax(1) == labels).astype(confidence.dtype)
    edges = jnp.arange(1, bins, dtype=confidence.dtype) / bins
    member = jax.nn.one_hot((confidence[:, None] > edges).sum(1), bins, dtype=confidence.dtype)
    count = member.sum(0)
    return Reliability(
        confidence=confidence @ member / jnp.maximum(count, 1),
        accuracy=right @ member / jnp.maximum(count, 1),
        share=count / len(labels),
    )


def fit_temperature(log_probs: ArrayLike, labels: ArrayLike) -> float:
    """Return the temperature by which log-probabilities are divided for the best likelihood.

    It is found by Newton's method on the convex problem, in float64 on the host, so that the result
    does not depend on a device. For an ensemble, fit it to the combined log-probabilities, on
    examples that no model was trained on.

    Args:
        log_probs: (n, classes) float, finite log-probabilities or logits.
        labels: (n,) int, in [0, classes).

    Returns:
        T in [0.01, 100]. The ends stand for what no T inside is better than: 0.01 where every label
        is the most probable class, 100 where the labels have nothing to do with the probabilities.

    Raises:
        ValueError: an argument has the wrong shape or type, or is out of its range.

    Example:
        A model that is right in three of four cases, and says so at T = 1:

        >>> sure = jnp.log(jnp.array([[0.75, 0.25]] * 4))
        >>> round(fit_temperature(2 * sure, jnp.array([0, 0, 0, 1])), 6)
        2.0
    """
    who = "fit_temperature"
    _check(who, log_probs, labels)
    logits, labels = np.asarray(log_probs, np.float64), np.asarray(labels)
    if not np.isfinite(logits).all():
        _checks.fail(
            who, "log_probs must be finite", f"{(~np.isfinite(logits)).sum()} that are not"
        )
    own = logits[np.arange(len(labels)), labels]

    def derivatives(inverse: float) -> tuple[float, float]:
        """Return the first and the second derivative of the NLL by 1/T."""
        weights = np.exp(inverse * (logits - logits.max(1, keepdims=True)))
        weights /= weights.sum(1, keepdims=True)
        mean = (weights * logits).sum(1)
        variance = (weights * (logits - mean[:, None]) ** 2).sum(1)
        return (mean - own).mean(), variance.mean()

    low, high = 1 / LARGEST_TEMPERATURE, 1 / LEAST_TEMPERATURE
    if derivatives(low)[0] >= 0:
        return LARGEST_TEMPERATURE
    if derivatives(high)[0] <= 0:
        return LEAST_TEMPERATURE
    inverse = 1.0
    for _ in range(_MOST_STEPS):
        slope, curvature = derivatives(inverse)
        if slope == 0:
            break
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        newton = inverse - slope / curvature if curvature > 0 else high
        # Newton's step may leave the interval that holds the minimum; its middle does not.
        following = newton if low < newton < high else np.sqrt(low * high)
        if abs(following - inverse) <= _TOLERANCE * inverse:
            break
        inverse = following
    return float(1 / inverse)


def _check(who: str, log_probs: ArrayLike, labels: ArrayLike) -> None:
    """Require log-probabilities (n, classes) and a label for each row; of tracers only the form."""
    log_probs, labels = jnp.asarray(log_probs), jnp.asarray(labels)
    floating = jnp.issubdtype(log_probs.dtype, jnp.floating)
    if not floating or log_probs.ndim != 2 or 0 in log_probs.shape:
        got = f"{log_probs.dtype}{list(log_probs.shape)}"
        _checks.fail(who, "log_probs must be floating-point numbers (n, classes)", got)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != log_probs.shape[:1]:
        required = f"labels must be integers ({len(log_probs)},), one for each row of log_probs"
        _checks.fail(who, required, f"{labels.dtype}{list(labels.shape)}")
    if isinstance(labels, jax.core.Tracer):
        return
    values, classes = np.unique(labels), log_probs.shape[1]
    outside = values[(values < 0) | (values >= classes)]
    if outside.size:
        required = f"labels must be in [0, {classes}), the number of classes"
        _checks.fail(who, required, ", ".join(map(str, outside[:5])))


def _normalized(log_probs: ArrayLike) -> Array:
    """Return log-probabilities in at least float32."""
    log_probs = jnp.asarray(log_probs)
    return jax.nn.log_softmax(log_probs.astype(jnp.promote_types(log_probs.dtype, jnp.float32)))
