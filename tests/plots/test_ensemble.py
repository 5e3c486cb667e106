"""Pictures of ensembles: what is drawn where."""

import numpy as np
import pytest

from optlab import plots
from optlab.lab import EnsembleReport, Reliability, Scores

DIAGRAM = Reliability(
    confidence=np.array([0.0, 0.4, 0.7, 0.95]),
    accuracy=np.array([0.0, 0.5, 0.6, 0.9]),
    share=np.array([0.0, 0.001, 0.299, 0.7]),
)


@pytest.fixture(scope="module")
def figure():
    gain = Scores(*(np.array([3.0, 2.0, 1.5]) * factor for factor in (0.01, 0.1, 0.2, 0.02)))
    both = {"probability": gain, "logit": gain}
    last = {how: Scores(*(score[-1] for score in gain)) for how in both}
    report = EnsembleReport(
        task="made-up",
        split="test",
        labels=("seed 0", "seed 1", "seed 2"),
        members=gain,
        combined=last,
        temperatures={"probability": 1.5, "logit": 2.0},
        calibrated=last,
        gain=both,
        diagrams=dict.fromkeys(("members", *both), DIAGRAM),
    )
    figure = report.plot()
    figure.draw_without_rendering()
    return figure


def test_a_report_has_a_diagram_and_the_gain_in_error_and_likelihood(figure):
    ylabels = [ax.get_ylabel() for ax in figure.axes]
    assert ylabels == ["accuracy", "error", "negative log-likelihood"]
    assert figure.get_suptitle() == "made-up, 3 models, test split"
    for ax, first in zip(figure.axes[1:], (0.03, 0.3), strict=True):
        assert [line.get_label() for line in ax.lines] == ["probability mean", "logit mean"]
        x, y = ax.lines[0].get_data()
        assert x.tolist() == [1, 2, 3]
        assert y[0] == pytest.approx(first)


def test_bins_with_hardly_any_examples_are_left_out_and_others_weigh_by_their_share():
    ax = plots.plot_reliability({"model": DIAGRAM})
    diagonal, line = ax.lines
    assert np.array_equal(*diagonal.get_data())
    assert line.get_data()[0].tolist() == [0.7, 0.95]
    (points,) = ax.collections
    assert points.get_offsets().tolist() == [[0.7, 0.6], [0.95, 0.9]]
    small, large = points.get_sizes()
    assert large / small == pytest.approx(np.sqrt(0.7 / 0.299))


def test_a_gain_is_drawn_on_the_axes_that_are_passed():
    ax = plots.plot_gain({"a": [3, 2]})
    assert plots.plot_gain({"b": [1, 2, 3]}, ylabel="error", ax=ax) is ax
    assert [line.get_label() for line in ax.lines] == ["a", "b"]
    assert ax.get_ylabel() == "error"
