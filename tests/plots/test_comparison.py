"""Pictures of comparisons: the axes they are drawn on, and that diverged runs are drawn as well."""

import dataclasses
from functools import partial

import numpy as np
import pytest

from optlab import plots
from optlab.lab import Comparison, Runs
from optlab.lab.tasks import valley_height


def descent(rates, steps):
    """Return runs of gradient descent in the valley from two starts; high rates diverge to NaN."""
    rates = np.array(rates, np.float32)
    points = [np.broadcast_to(np.float32([[4.0, 0.7], [5.0, 1.0]]), (len(rates), 2, 2))]
    with np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps):
            step = rates[:, None, None] * np.float32([2.0, 100.0]) * points[-1]
            points.append(points[-1] - step)
        x, y = np.moveaxis(points, 0, -2).transpose(3, 0, 1, 2)
        loss = valley_height(x, y)
        accuracy = 1 / (1 + loss)
    return Runs(
        rates=rates,
        seeds=np.arange(2),
        steps=np.arange(steps + 1),
        train_loss=loss,
        validation={"loss": loss, "x": x, "y": y, "accuracy": accuracy},
        test={},
        seconds=0.0,
    )


def comparison_of(**runs):
    return Comparison("valley", None, "loss", False, None, runs)


@pytest.fixture(scope="module")
def valley():
    whole = descent([0.001, 0.01, 1.0], 12)
    assert whole.diverged.any(axis=1).tolist() == [False, False, True]
    return comparison_of(whole=whole, half=descent([0.0005, 0.005, 0.5], 12))


@pytest.fixture(scope="module")
def hopeless():
    runs = descent([1.0, 10.0], 60)
    assert runs.diverged.all()
    assert np.isnan(runs.validation["loss"]).any()
    return comparison_of(sgd=runs)


PATHS = partial(plots.plot_paths, height=valley_height)


@pytest.mark.parametrize("plot", [plots.plot_curves, plots.plot_sensitivity, PATHS])
def test_plots_draw_on_the_axes_they_are_given_or_on_new_ones(plot, valley, hopeless, tmp_path):
    ax = plot(valley)
    assert plot(hopeless, ax=ax) is ax
    plot(hopeless).figure.savefig(tmp_path / "hopeless.png")
    ax.figure.savefig(tmp_path / "plot.png")
    assert ax.get_xlabel()
    assert ax.get_ylabel()


def test_a_loss_that_spans_decades_is_drawn_on_a_logarithmic_axis_and_nothing_else(valley):
    long = comparison_of(whole=descent([0.001, 0.01], 60))
    assert plots.plot_curves(long).get_yscale() == "log"
    assert plots.plot_curves(long, metric="accuracy").get_yscale() == "linear"
    assert plots.plot_curves(valley).get_yscale() == "linear"  # from 50 to 20
    labels = [label.get_text() for label in plots.plot_curves(long).get_yticklabels()]
    assert {"5", "10", "20"} <= set(labels)


def test_paths_have_a_panel_for_each_optimizer(valley, tmp_path):
    figure = plots.plot_path_panels(valley, height=valley_height)
    figure.savefig(tmp_path / "paths.png")
    assert len(figure.axes) == len(valley.runs)


def test_paths_need_coordinates(valley):
    runs = valley.runs["whole"]
    losses_alone = {"loss": runs.validation["loss"]}
    blind = comparison_of(sgd=dataclasses.replace(runs, validation=losses_alone))
    with pytest.raises(ValueError, match="plot_paths: the task must evaluate coordinates"):
        plots.plot_paths(blind, height=valley_height)
