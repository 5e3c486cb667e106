"""Pictures of runs: what is drawn where, and that odd runs are drawn as well."""

import dataclasses
import sys

import numpy as np
import pytest

from optlab import plots
from optlab.lab import History
from optlab.plots._history import _medians, _thinned

NAN = float("nan")


def draw(figure):
    figure.draw_without_rendering()
    return figure


def run(count=400, diverged_at=None, groups=("body", "head"), **options):
    """Return the history of a run whose loss falls a hundredfold."""
    rng = np.random.default_rng(0)
    updates, steps = np.arange(count), np.linspace(0, count, 11).astype(int)
    loss = 2 * 0.01 ** (updates / count) * np.exp(0.2 * rng.normal(size=count))
    smooth = 2 * 0.01 ** (steps / count)
    norms = np.exp(rng.normal(size=count))
    monitored = {
        "gradient_norm": norms,
        "clipped_norm": np.minimum(norms, 1.0),
        "clipped_share": np.cumsum(norms > 1) / (updates + 1),
        **{f"ratio/{name}": np.full(count, 1e-3 * (i + 1)) for i, name in enumerate(groups)},
    }
    validation = {"loss": 1.2 * smooth, "accuracy": 1 - smooth / 3}
    if diverged_at is not None:
        loss[diverged_at:] = np.nan
        validation = {k: np.where(steps > diverged_at, np.nan, v) for k, v in validation.items()}
    return History(
        loss=loss,
        steps=steps,
        train={"loss": smooth, "accuracy": 1 - smooth / 4},
        validation=validation,
        learning_rate=np.linspace(0.1, 0.0, count),
        monitored=monitored,
        **{"score": "accuracy", "maximize": True, **options},
    )


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()] if ax.get_legend() else []


def curve(ax, label):
    return next(line for line in ax.lines if line.get_label() == label).get_data()


def test_a_run_has_a_panel_for_each_thing_there_is_data_of():
    full = draw(plots.plot_history(run()))
    names = ["loss", "accuracy", "learning rate", "gradient norm", "update / weights"]
    assert [ax.get_ylabel() for ax in full.axes] == names
    assert [ax.get_xlabel() for ax in full.axes] == [""] * 4 + ["optimizer updates done"]
    assert len({ax.get_xlim() for ax in full.axes}) == 1
    by_loss = plots.plot_history(dataclasses.replace(run(), score="loss", monitored={}))
    assert [ax.get_ylabel() for ax in by_loss.axes] == ["loss", "learning rate"]
    (alone,) = plots.plot_history(History(loss=np.linspace(2.0, 1.0, 10))).axes
    assert (alone.get_ylabel(), alone.get_yscale()) == ("loss", "linear")
    assert labels(alone) == ["batches"]


def test_losses_of_updates_and_of_evaluations_are_told_apart():
    history = run()
    ax = plots.plot_history(history).axes[0]
    assert labels(ax) == ["batches, median of 11", "training set", "validation set"]
    assert len({line.get_color() for line in ax.lines}) == 3
    np.testing.assert_array_equal(curve(ax, "training set"), [history.steps, history.train["loss"]])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), history.loss)
    places, medians = ax.lines[1].get_data()
    assert medians[200] == np.median(history.loss[places[200] - 5 : places[200] + 6])
    assert ax.get_yscale() == "log"
    low, high = ax.get_ylim()
    assert low <= history.loss.min()
    assert high >= history.loss.max()


def test_the_best_evaluation_has_a_ring():
    figure = plots.plot_history(run())
    assert labels(figure.axes[1]) == ["best: 0.993 at 400"]
    x, y = curve(figure.axes[1], "best: 0.993 at 400")
    assert (*x, *y) == (400, pytest.approx(1 - 0.02 / 3))
    by_loss = dataclasses.replace(run(), score="loss", maximize=False)
    assert labels(plots.plot_history(by_loss).axes[0])[-1] == "best: 0.024 at 400"


def test_what_monitor_recorded_is_drawn():
    *_, norms, ratios = plots.plot_history(run()).axes
    share = run().monitored["clipped_share"][-1]
    assert labels(norms) == ["before clipping", f"after, {share:.0%} clipped"]
    assert curve(norms, labels(norms)[1])[1].max() <= 1
    assert labels(ratios) == ["body", "head", "usual: 0.001"]
    assert ratios.get_yscale() == "log"
    np.testing.assert_array_equal(curve(ratios, "head")[1], 2e-3)
    unclipped = run()
    unclipped.monitored["clipped_norm"] = unclipped.monitored["gradient_norm"]
    *_, norms, _ = plots.plot_history(unclipped).axes
    assert labels(norms) == ["of all gradients"]


def test_of_many_groups_the_range_and_three_are_drawn():
    ax = plots.plot_history(run(groups=[f"layer{i}" for i in range(12)])).axes[-1]
    assert labels(ax) == ["all 12 groups", "layer11", "layer5", "layer0", "usual: 0.001"]


def test_several_monitors_are_told_apart():
    history = run(groups=())
    history.monitored["gradient_norm[1]"] = 2 * history.monitored["gradient_norm"]
    ax = plots.plot_history(history).axes[-1]
    assert labels(ax)[-1] == "[1]"
    assert len({line.get_color() for line in ax.lines}) == 3


def test_divergence_is_marked_where_it_happens(tmp_path):
    figure = plots.plot_history(run(diverged_at=123))
    figure.savefig(tmp_path / "diverged.png", dpi=40)
    assert [text.get_text() for text in figure.axes[0].texts] == ["not finite after 123 updates"]
    for ax in figure.axes:
        assert any(list(line.get_xdata()) == [123, 123] for line in ax.lines)
    assert not plots.plot_history(run()).axes[0].texts


def test_what_is_evaluated_after_divergence_is_not_the_best():
    history = History(
        loss=[2.0, NAN],
        steps=[0, 1, 2],
        validation={"loss": [2.0, 1.0, NAN], "accuracy": [0.1, 0.5, 0.9]},
        score="accuracy",
        maximize=True,
    )
    figure = draw(plots.plot_history(history))
    assert "best: 0.5 at 1" in labels(figure.axes[1])
    ticks = figure.axes[1].get_xticks()
    np.testing.assert_array_equal(ticks, ticks.round())


def test_a_loss_that_explodes_does_not_flatten_what_went_before():
    loss = np.concatenate([np.linspace(2.0, 1.5, 50), 2.0 * 10.0 ** np.arange(30), [np.inf]])
    ax = plots.plot_history(History(loss=loss)).axes[0]
    assert ax.get_ylim()[1] == 8.0
    assert ax.get_yscale() == "linear"


@pytest.mark.parametrize(
    "history",
    [
        History(loss=[]),
        History(loss=[1.0]),
        History(loss=[NAN, NAN], steps=[0, 2], validation={"loss": [NAN, np.inf]}),
        History(loss=[-1.0, -3.0], learning_rate=[0.0, 0.0]),
        History(loss=np.full(9, 2.0), monitored={"gradient_norm": np.zeros(9)}),
        History(loss=np.full(9, 2.0), monitored={"ratio/all": [0.0, NAN, np.inf] * 3}),
    ],
)
def test_odd_runs_are_drawn(history, tmp_path):
    figure = plots.plot_history(history, title="odd")
    figure.savefig(tmp_path / "odd.png", dpi=40)
    assert figure.get_suptitle() == "odd"


def test_long_titles_are_wrapped():
    title = plots.plot_history(run(), title="word " * 40 + "\nnext").get_suptitle()
    assert max(map(len, title.splitlines())) <= 90
    assert title.splitlines()[-1] == "next"


def test_a_long_run_is_drawn_from_its_extremes():
    values = np.random.default_rng(0).normal(size=100_000)
    values[40_000] = 99.0
    values[50_000:60_000] = np.nan
    x, y = _thinned(values)
    assert len(x) < 6_100
    assert (x[0], x[-1]) == (0, 99_999)
    assert np.nanmin(y) == np.nanmin(values)
    assert y[x == 40_000] == 99.0
    assert np.isnan(y[(x > 50_100) & (x < 59_900)]).all()
    np.testing.assert_array_equal(y, values[x])
    places, medians = _medians(values)
    assert len(places) == 400
    # The median of 2,501 normal numbers errs by 0.025, and 3 or 4 of that are rare in 400.
    assert np.nanmax(np.abs(medians)) < 0.1
    assert np.isnan(medians[(places >= 50_000) & (places < 60_000)]).all()


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"^plot_history: .*matplotlib"):
        plots.plot_history(run())


def test_scores_of_the_later_run_can_be_told_apart():
    steps = np.arange(0, 101, 10)
    rising = np.array([0.1, 0.8, 0.93, 0.94, 0.95, 0.96, 0.97, 0.97, 0.97, 0.97, 0.97])
    history = History(
        loss=np.geomspace(2.3, 0.1, 100),
        steps=steps,
        validation={"loss": 1 - rising, "accuracy": rising},
        score="accuracy",
        maximize=True,
    )
    ax = history.plot().axes[1]
    low, high = ax.get_ylim()
    assert 0.8 < low < 0.93
    assert 0.97 < high < 1
    assert "2 early values are beyond the axis" in [text.get_text() for text in ax.texts]
