"""Pictures of sweeps and of runs: what is drawn where, and that odd results are drawn as well."""

import dataclasses
import sys

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from optlab import plots
from optlab.lab import Categorical, History, Integer, LogUniform, Sweep, Trial, Uniform
from optlab.plots._common import ACCENT
from optlab.plots._history import _medians, _thinned
from optlab.plots._parallel import LOST
from optlab.plots._scale import linear_ticks, log_ticks, metric_scale, range_ticks, short, spread

NAN = float("nan")
SPACE = {
    "learning_rate": LogUniform(1e-4, 1e-1),
    "dropout": Uniform(0.0, 0.6),
    "layers": Integer(1, 4),
    "width": Integer(16, 256, log=True),
    "batch_size": Categorical((16, 32, 64)),
}


def trial(number, values, score, loss, status="complete", steps=100):
    return Trial(
        number=number,
        values=values,
        status=status,
        steps=np.array([0, steps]),
        train_loss=np.array([[NAN, loss]]),
        validation={"accuracy": np.array([[0.1, score]]), "loss": np.array([[2.3, loss]])},
        score=NAN if status == "diverged" else score,
    )


def made_up(trials, space, score="accuracy"):
    return Sweep(
        task="made-up",
        space=space,
        search="random",
        split="validation",
        score=score,
        maximize=score == "accuracy",
        trials=trials,
        seconds=1.0,
    )


def sample(space, count, seed=0):
    """Return points of a space, drawn without the search's own machinery."""
    rng = np.random.default_rng(seed)
    return [{name: r.at(rng.uniform()) for name, r in space.items()} for _ in range(count)]


def judged(space, count, **options):
    """Return a sweep in which accuracy falls, and the loss rises, away from a rate of 0.01."""
    trials = []
    for number, values in enumerate(sample(space, count)):
        off = abs(np.log10(values.get("learning_rate", 0.01)) + 2) + 1e-3 * number
        status = "diverged" if off > 1.7 else "stopped" if off > 0.8 else "complete"
        steps = 100 if status == "complete" else 20
        trials.append(trial(number, values, 0.95 - 0.2 * off, 0.05 * 10**off, status, steps))
    return made_up(trials, space, **options)


@pytest.fixture(scope="module")
def mixed():
    found = judged(SPACE, 40)
    assert {t.status for t in found.trials} == {"complete", "stopped", "diverged"}
    return found


def points(ax):
    """Return label → (x, y) of the points of a panel."""
    return {
        line.get_label(): line.get_data() for line in ax.lines if line.get_label()[0] not in "_"
    }


def draw(figure):
    figure.draw_without_rendering()
    return figure


# Parallel coordinates


def line_groups(ax):
    lost, kept = (c for c in ax.collections if isinstance(c, LineCollection))
    return lost, kept


def test_every_trial_is_a_line_and_the_best_is_drawn_last(mixed):
    ax = plots.plot_parallel(mixed)
    lost, kept = line_groups(ax)
    diverged = sum(t.status == "diverged" for t in mixed.trials)
    assert len(lost.get_segments()) == diverged
    assert len(kept.get_segments()) == len(mixed.trials) - diverged - 1
    (best,) = (line for line in ax.lines if line.get_label() == f"trial {mixed.best.number}")
    assert to_hex(best.get_color()) == ACCENT.lower()
    assert best.get_zorder() > kept.get_zorder() > lost.get_zorder()
    x, y = best.get_data()
    for index, (name, values) in enumerate(SPACE.items()):
        at_axis = y[x == index]
        np.testing.assert_array_equal(at_axis, values.position(mixed.best.values[name]))


def test_lines_are_darker_the_better_and_thinner_where_stopped(mixed):
    _, kept = line_groups(plots.plot_parallel(mixed))
    brightness = kept.get_colors()[:, :3].sum(axis=1)
    ends = np.array([segment[-1, 1] for segment in kept.get_segments()])
    assert len(np.unique(ends)) > 10
    # Between neighbours in rank the colours may round to the same entry of the map.
    order = np.argsort(ends)
    assert (np.diff(brightness[order]) <= 0).mean() > 0.9
    assert brightness[order[0]] > brightness[order[-1]] + 0.5
    widths = np.unique(kept.get_linewidths())
    stopped = sum(t.status == "stopped" for t in mixed.trials)
    assert (np.array(kept.get_linewidths()) == widths[0]).sum() == stopped


@pytest.mark.parametrize(("score", "below"), [("accuracy", True), ("loss", False)])
def test_diverged_trials_end_beyond_the_bad_end_of_the_scores(mixed, score, below):
    ax = plots.plot_parallel(dataclasses.replace(mixed, score=score, maximize=below))
    lost, kept = line_groups(ax)
    ends = [segment[-1, 1] for segment in lost.get_segments()]
    np.testing.assert_allclose(ends, -LOST if below else 1 + LOST)
    assert {"diverged"} <= {text.get_text() for text in ax.texts}
    assert all(0 <= segment[-1, 1] <= 1 for segment in kept.get_segments())


def test_axes_are_named_and_have_ticks_of_their_own(mixed):
    ax = plots.plot_parallel(mixed)
    height = {text.get_text(): text.xy[1] for text in ax.texts if text.xy[0] == 0}
    rates = {"0.0001": 0, "0.001": 1 / 3, "0.01": 2 / 3, "0.1": 1}
    assert {label: height[label] for label in rates} == pytest.approx(rates)
    labels = [text.get_text() for text in ax.texts]
    assert {"learning_rate", "dropout", "batch_size", "validation\naccuracy"} <= set(labels)
    choices = [text for text in ax.texts if text.xy[0] == 4 and text.get_ha() == "right"]
    assert [text.get_text() for text in choices] == ["16", "32", "64"]
    np.testing.assert_allclose([text.xy[1] for text in choices], [1 / 6, 1 / 2, 5 / 6])


def test_trials_of_one_choice_lie_apart_but_nearer_to_it_than_to_the_next():
    choices = Categorical(("a", "b", "c"))
    for mixed_up in (False, True):
        positions = spread(choices, ["b"] * 200 + ["a", "c", "b"], mixed=mixed_up)
        assert positions[-1] == 0.5
        assert len(np.unique(positions[:200])) == 200
        assert np.abs(positions[:200] - 0.5).max() < 0.5 / 3
        np.testing.assert_array_equal(positions[200:202], [1 / 6, 5 / 6])
    assert (np.diff(spread(choices, ["b"] * 50)[:-1]) > 0).all()
    assert np.abs(np.diff(spread(choices, ["b"] * 50, mixed=True)[:-1])).min() > 0.02


def test_axes_that_are_given_are_drawn_on(mixed):
    left, right = Figure().subplots(1, 2)
    assert plots.plot_parallel(mixed, ax=left) is left
    assert plots.plot_hyperparameter(mixed, "dropout", ax=right) is right


# Panels


def test_a_panel_shows_each_trial_as_what_became_of_it(mixed):
    ax = plots.plot_hyperparameter(mixed, "learning_rate")
    shown = points(ax)
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "learning_rate"
    assert ax.get_ylabel() == "validation accuracy"
    best = mixed.best
    assert np.concatenate(shown["best"]) == pytest.approx(
        [best.values["learning_rate"], best.score]
    )
    complete = [t for t in mixed.trials if t.status == "complete" and t is not best]
    assert sorted(shown["complete"][1]) == sorted(t.score for t in complete)
    diverged = [t.values["learning_rate"] for t in mixed.trials if t.status == "diverged"]
    assert sorted(shown["diverged"][0]) == sorted(diverged)
    assert max(shown["diverged"][1]) < min(t.score for t in complete)
    assert ax.get_ylim()[0] < min(shown["diverged"][1])
    hollow = next(line for line in ax.lines if line.get_label() == "stopped early")
    assert hollow.get_markerfacecolor() == "none"
    assert sum(len(x) for x, _ in shown.values()) == len(mixed.trials)
    assert [text.get_text() for text in ax.texts] == [short(best.values["learning_rate"], 3)]


def test_a_loss_that_spans_decades_is_on_a_logarithmic_axis(mixed):
    ax = plots.plot_hyperparameter(mixed, "dropout", metric="loss")
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    assert min(points(ax)["diverged"][1]) > max(points(ax)["complete"][1])
    assert plots.plot_hyperparameter(mixed, "dropout").get_yscale() == "linear"
    close = made_up([trial(i, {"dropout": 0.1 * i}, 0.9, 1.0 + i) for i in range(5)], {})
    close = dataclasses.replace(close, space={"dropout": SPACE["dropout"]})
    ax = plots.plot_hyperparameter(close, "dropout", metric="loss")
    assert ax.get_yscale() == "linear"


def test_choices_are_strips_and_integers_stay_near_their_ticks(mixed):
    for name, first in (("batch_size", 0), ("layers", 1)):
        ax = plots.plot_hyperparameter(mixed, name)
        labels = [text.get_text() for text in ax.get_xticklabels()]
        assert labels == [str(choice) for choice in SPACE[name].levels(9)]
        ticks = ax.get_xticks()
        assert list(ticks) == list(range(first, first + len(labels)))
        x = np.concatenate([x for x, _ in points(ax).values()])
        at = np.round(x).astype(int)
        chosen = sorted(str(t.values[name]) for t in mixed.trials)
        assert sorted(labels[index - first] for index in at) == chosen
        assert 0 < np.abs(x - at).max() < 0.35


def test_a_few_bad_trials_do_not_press_the_good_ones_together():
    scores = [*np.linspace(0.9, 0.95, 20), 0.1, 0.2]
    values = sample({"dropout": SPACE["dropout"]}, len(scores))
    found = [trial(i, v, s, 1 - s) for i, (v, s) in enumerate(zip(values, scores, strict=True))]
    found = made_up(found, {"dropout": SPACE["dropout"]})
    scale = metric_scale(found, "accuracy")
    assert 0.85 < scale.low < 0.9
    assert scale.high == 0.95
    ax = plots.plot_hyperparameter(found, "dropout")
    shown = points(ax)
    assert len(shown["complete"][0]) == 19
    np.testing.assert_array_equal(shown["beyond the axis"][1], [scale.low, scale.low])
    bottom, top = ax.get_ylim()
    assert bottom < scale.low < scale.high < top
    _, kept = line_groups(plots.plot_parallel(found))
    assert sum(segment[-1, 1] == 0 for segment in kept.get_segments()) == 2


def test_the_best_trial_is_shown_even_where_its_loss_lies_beyond_the_axis():
    space = {"dropout": SPACE["dropout"]}
    found = [trial(i, v, 0.9, 0.5 + 0.001 * i) for i, v in enumerate(sample(space, 20))]
    found.append(trial(20, {"dropout": 0.3}, 0.99, 3.0))
    ax = plots.plot_hyperparameter(made_up(found, space), "dropout", metric="loss")
    bottom, top = ax.get_ylim()
    (height,) = points(ax)["best"][1]
    assert bottom < height < top < 3.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "rate"}, "name must be one of learning_rate, .*, got 'rate'"),
        ({"name": "dropout", "metric": "f1"}, "metric must be one of accuracy, loss, got 'f1'"),
    ],
)
def test_what_a_sweep_does_not_have_is_told(mixed, arguments, message):
    with pytest.raises(ValueError, match=f"^plot_hyperparameter: {message}"):
        plots.plot_hyperparameter(mixed, **arguments)


# The whole picture of a sweep


def test_the_picture_has_a_panel_for_each_hyperparameter_and_metric(mixed):
    figure = draw(mixed.plot())
    parallel, *panels = figure.axes
    assert "40 trials, random search" in parallel.get_title(loc="left")
    assert len(panels) == 2 * len(SPACE)
    assert [ax.get_xlabel() for ax in panels[1::2]] == list(SPACE)
    assert not any(ax.get_xlabel() for ax in panels[::2])
    assert panels[0].get_ylabel() == "validation accuracy"
    assert panels[1].get_ylabel() == "validation loss"
    assert panels[0].get_ylim() == panels[2].get_ylim()
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert set(labels) >= {"complete", "stopped early", "diverged", "best"}
    assert len(set(labels)) == len(labels)
    by_loss = dataclasses.replace(mixed, score="loss", maximize=False).plot()
    assert len(by_loss.axes) == 1 + len(SPACE)


def test_panels_do_not_overlap(mixed):
    figure = draw(plots.plot_sweep(mixed))
    boxes = [ax.get_tightbbox() for ax in figure.axes]
    for index, box in enumerate(boxes):
        # By the width of a line labels may meet where nothing is drawn.
        assert not any(box.padded(-2).overlaps(other.padded(-2)) for other in boxes[:index])
        assert box.x0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1


@pytest.mark.parametrize(
    ("space", "count"),
    [
        ({"learning_rate": SPACE["learning_rate"]}, 1),
        ({"batch_size": SPACE["batch_size"]}, 12),
        ({"nesterov": Categorical((True,))}, 3),
        ({"narrow": LogUniform(3e-3, 3.1e-3), "name": Categorical(("a" * 20, "b" * 20))}, 9),
        ({f"a_long_name_{i}": Uniform(0.0, 1.0) for i in range(8)}, 500),
    ],
)
def test_small_and_large_spaces_are_drawn(space, count, tmp_path):
    figure = plots.plot_sweep(judged(space, count))
    figure.savefig(tmp_path / "sweep.png", dpi=40)
    assert len(figure.axes) == 1 + 2 * len(space)


def test_a_sweep_that_diverged_throughout_is_drawn(tmp_path):
    space = {"learning_rate": SPACE["learning_rate"], "layers": SPACE["layers"]}
    values = sample(space, 5)
    found = made_up([trial(i, v, NAN, np.inf, "diverged") for i, v in enumerate(values)], space)
    figure = plots.plot_sweep(found)
    figure.savefig(tmp_path / "lost.png", dpi=40)
    parallel, *panels = figure.axes
    assert "all diverged" in parallel.get_title(loc="left")
    for ax in panels:
        ((label, (x, _)),) = points(ax).items()
        assert (label, len(x)) == ("diverged", 5)


def test_scores_that_are_all_the_same_are_drawn(tmp_path):
    space = {"dropout": SPACE["dropout"]}
    found = made_up([trial(i, v, 0.9, 0.0) for i, v in enumerate(sample(space, 5))], space)
    figure = plots.plot_sweep(found)
    figure.savefig(tmp_path / "same.png", dpi=40)
    low, high = figure.axes[1].get_ylim()
    assert low < 0.9 < high


def test_ticks_are_round_and_as_many_as_fit():
    def labels(ticks):
        return [label for _, label in ticks]

    assert labels(log_ticks(1e-4, 1e-1)) == ["0.0001", "0.001", "0.01", "0.1"]
    assert labels(log_ticks(2e-4, 3e-2)) == ["0.0003", "0.001", "0.003", "0.01", "0.03"]
    assert labels(log_ticks(0.15, 1.2)) == ["0.2", "0.5", "1"]
    assert labels(log_ticks(1e-11, 200.0)) == ["1e-9", "1e-6", "0.001", "1"]
    assert len(log_ticks(3e-3, 3.1e-3)) >= 2
    assert labels(linear_ticks(0.0, 0.6)) == ["0", "0.15", "0.3", "0.45", "0.6"]
    assert labels(range_ticks(Integer(16, 256, log=True))) == ["16", "32", "64", "128", "256"]
    assert labels(range_ticks(Integer(1, 3))) == ["1", "2", "3"]
    assert all("." not in label for label in labels(range_ticks(Integer(3, 40))))
    for values in (*SPACE.values(), LogUniform(1e-6, 3e-2), Uniform(0.85, 0.9995)):
        positions = [values.position(tick) for tick, _ in range_ticks(values)]
        assert (np.diff(positions) > 0).all()


# A run


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


def test_without_matplotlib_the_extra_is_named(mixed, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for picture, result in ((plots.plot_sweep, mixed), (plots.plot_history, run())):
        with pytest.raises(ModuleNotFoundError, match=f"^{picture.__name__}: .*matplotlib"):
            picture(result)
