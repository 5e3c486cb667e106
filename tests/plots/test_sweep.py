"""Pictures of sweeps: what is drawn where, and that odd results are drawn as well."""

import dataclasses
import sys

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from optlab import plots
from optlab.lab import Categorical, Integer, LogUniform, Sweep, Trial, Uniform
from optlab.plots._common import ACCENT
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
    hollow = next(line for line in ax.lines if line.get_label() == "stopped by halving")
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
    parallel, *panels, trials, importances = figure.axes
    assert "40 trials, random search" in parallel.get_title(loc="left")
    assert trials.get_xlabel() == "optimizer updates done"
    assert [text.get_text() for text in importances.get_yticklabels()] == list(SPACE)
    assert len(panels) == 2 * len(SPACE)
    assert [ax.get_xlabel() for ax in panels[1::2]] == list(SPACE)
    assert not any(ax.get_xlabel() for ax in panels[::2])
    assert panels[0].get_ylabel() == "validation accuracy"
    assert panels[1].get_ylabel() == "validation loss"
    assert panels[0].get_ylim() == panels[2].get_ylim()
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert set(labels) >= {"complete", "stopped by halving", "diverged", "best"}
    assert len(set(labels)) == len(labels)
    by_loss = dataclasses.replace(mixed, score="loss", maximize=False).plot()
    assert len(by_loss.axes) == 3 + len(SPACE)


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
    beside = 2 if len(space) == 1 else 3  # a single hyperparameter has no lines
    assert len(figure.axes) == beside + 2 * len(space)


def test_a_sweep_that_diverged_throughout_is_drawn(tmp_path):
    space = {"learning_rate": SPACE["learning_rate"], "layers": SPACE["layers"]}
    values = sample(space, 5)
    found = made_up([trial(i, v, NAN, np.inf, "diverged") for i, v in enumerate(values)], space)
    figure = plots.plot_sweep(found)
    figure.savefig(tmp_path / "lost.png", dpi=40)
    parallel, *panels, _, _ = figure.axes
    assert "all diverged" in parallel.get_title(loc="left")
    for ax in panels:
        ((label, (x, _)),) = points(ax).items()
        assert (label, len(x)) == ("diverged", 5)


def test_scores_that_are_all_the_same_are_drawn(tmp_path):
    space = {"dropout": SPACE["dropout"]}
    found = made_up([trial(i, v, 0.9, 0.0) for i, v in enumerate(sample(space, 5))], space)
    figure = plots.plot_sweep(found)
    figure.savefig(tmp_path / "same.png", dpi=40)
    score, _, trials, _ = figure.axes
    for ax in (score, trials):
        low, high = ax.get_ylim()
        assert low < 0.9 < high


def test_each_trial_has_a_learning_curve_and_the_best_is_highlighted(mixed):
    ax = draw(plots.plot_trials(mixed).figure).axes[0]
    curves = [line for line in ax.lines if line.get_color() != "white"]
    assert len(curves) == len(mixed.trials)
    (best,) = (line for line in curves if line.get_color() == ACCENT)
    np.testing.assert_allclose(best.get_ydata(), mixed.best.validation["accuracy"][0])
    assert ax.get_legend().get_title().get_text() == "darker curves are better"
    diverged = sum(line.get_linestyle() == "--" for line in curves)
    assert diverged == sum(trial.diverged for trial in mixed.trials)


def test_a_bar_is_as_long_as_its_importance_and_hollow_where_it_is_unsure(mixed):
    ax = plots.plot_importances(mixed)
    found = mixed.importances()
    for bar, (share, sure) in zip(ax.patches, found.values(), strict=True):
        assert bar.get_width() == share
        assert (bar.get_facecolor()[3] > 0) == sure
    assert found["learning_rate"].sure


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


@pytest.mark.parametrize("values", [Integer(8, 64), Integer(-5, 1000), Integer(3, 9999, log=True)])
def test_ticks_of_wide_ranges_of_integers_are_values_of_the_range(values):
    ticks = [tick for tick, _ in range_ticks(values)]
    assert len(ticks) >= 3
    assert [values.at(values.position(tick)) for tick in ticks] == ticks


def test_without_matplotlib_the_extra_is_named(mixed, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"^plot_sweep: .*matplotlib"):
        plots.plot_sweep(mixed)
