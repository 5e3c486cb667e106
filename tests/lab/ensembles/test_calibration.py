"""Combined predictions, scores and temperatures, against float64 and numbers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp

from optlab.lab import combine_log_probs, fit_temperature, reliability, scores

RNG = np.random.default_rng(0)
LOGITS = (3 * RNG.normal(size=(4, 200, 5))).astype(np.float32)
LABELS = np.where(RNG.random(200) < 0.5, LOGITS[0].argmax(-1), RNG.integers(0, 5, 200))

# A few roundings of a sum of some tens of terms in float32.
FLOAT32 = 2e-6

# Three models' logits of one example with two classes. exp(−200) is 0 in float32.
HOPELESS = np.float32([[[200.0, 0.0]]] * 3)


def test_the_worked_logits_combine_to_the_numbers_by_hand():
    logits = jnp.array([[2.0, 0.0, -1.0], [0.0, 1.0, -3.0]])
    probability = np.exp(combine_log_probs(logits))
    np.testing.assert_allclose(probability, [0.55459, 0.41780, 0.02761], atol=5e-6)
    logit = np.exp(combine_log_probs(logits, how="logit"))
    np.testing.assert_allclose(logit, [0.60375, 0.36619, 0.03006], atol=5e-6)


def test_combinations_are_the_means_of_probabilities_and_of_logits():
    log_probs = log_softmax(LOGITS.astype(np.float64), axis=-1)
    expected = logsumexp(log_probs, axis=0) - np.log(4)
    np.testing.assert_allclose(combine_log_probs(LOGITS), expected, rtol=FLOAT32)
    moved = combine_log_probs(LOGITS.transpose(1, 0, 2), axis=1)
    np.testing.assert_allclose(moved, expected, rtol=FLOAT32)
    sharper = log_softmax(LOGITS.astype(np.float64).mean(0), axis=-1)
    combined = combine_log_probs(LOGITS, how="logit")
    np.testing.assert_allclose(combined, sharper, rtol=FLOAT32, atol=FLOAT32)


@pytest.mark.parametrize("how", ["probability", "logit"])
def test_a_class_that_every_member_rules_out_keeps_a_finite_log_probability(how):
    np.testing.assert_allclose(combine_log_probs(HOPELESS, how=how), [[0, -200]], rtol=FLOAT32)


def formulas(log_probs, labels, bins):
    """Return error, NLL, Brier score and ECE, each example and bin on its own, in float64."""
    probs = np.exp(log_softmax(log_probs.astype(np.float64), axis=-1))
    top, right = probs.max(1), probs.argmax(1) == labels
    brier = ((probs - np.eye(probs.shape[1])[labels]) ** 2).sum(1).mean()
    ece = 0.0
    for j in range(bins):
        inside = (top > j / bins) & (top <= (j + 1) / bins)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - top[inside].mean())
    nll = -np.log(probs[np.arange(len(labels)), labels]).mean()
    return 1 - right.mean(), nll, brier, ece


def test_scores_are_those_of_the_formulas():
    # A compiled function for one model serves all of them under vmap.
    mapped = jax.jit(jax.vmap(scores, in_axes=(0, None)))(LOGITS, jnp.asarray(LABELS))
    for member, logits in enumerate(LOGITS):
        got = [score[member] for score in mapped]
        np.testing.assert_allclose(got, formulas(logits, LABELS, 15), rtol=FLOAT32, atol=FLOAT32)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
    log_probs = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.75, 0.25, 0.0]]))
    confidence, accuracy, share = reliability(log_probs, jnp.array([0, 1]), bins=4)
    np.testing.assert_allclose(share, [0, 0.5, 0.5, 0])
    np.testing.assert_allclose(confidence, [0, 0.5, 0.75, 0], rtol=FLOAT32)
    assert accuracy.tolist() == [0, 1, 0, 0]


def test_the_temperature_minimizes_the_likelihood_of_the_formula():
    def nll(log_temperature):
        scaled = log_softmax(LOGITS[0].astype(np.float64) / np.exp(log_temperature), axis=-1)
        return -scaled[np.arange(200), LABELS].mean()

    best = np.exp(minimize_scalar(nll, bracket=(-1, 2), tol=1e-12).x)
    temperature = fit_temperature(LOGITS[0], LABELS)
    # The search compares values near a minimum, which differ by the square of the distance.
    assert temperature == pytest.approx(best, rel=1e-6)
    assert fit_temperature(4 * LOGITS[0], LABELS) == pytest.approx(4 * temperature, rel=1e-9)
    normalized = log_softmax(LOGITS[0].astype(np.float64), axis=-1)
    assert fit_temperature(normalized, LABELS) == pytest.approx(temperature, rel=1e-9)


def test_a_temperature_without_a_minimum_is_an_end_of_the_range():
    assert fit_temperature(LOGITS[0], LOGITS[0].argmax(-1)) == 0.01
    assert fit_temperature(LOGITS[0], LOGITS[0].argmin(-1)) == 100.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: combine_log_probs(LOGITS, how="mean"), "how must be one of 'probability', 'logi"),
        (lambda: combine_log_probs(LOGITS, axis=2), "axis must be an axis of the members"),
        (lambda: combine_log_probs(LABELS), r"must be floating-point numbers \(members, …, clas"),
        (lambda: scores(LOGITS, LABELS), r"numbers \(n, classes\), got float32\[4, 200, 5\]"),
        (lambda: scores(LOGITS[0], LABELS[:9]), r"labels must be integers \(200,\).*got int"),
        (lambda: scores(LOGITS[0], LABELS + 1), r"labels must be in \[0, 5\), the .* got 5$"),
        (lambda: reliability(LOGITS[0], LABELS, bins=0), "bins must be an integer >= 1"),
        (lambda: fit_temperature(LOGITS[0] / 0.0, LABELS), "must be finite, got 1000 that are"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_cannot_be_judged_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
