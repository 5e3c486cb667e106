"""Pictures of benchmarks: profiles, areas, and a table of costs in which misses are dashes."""

import math

import numpy as np
import pytest

from optlab import plots
from optlab.lab import Bench, Goal, Outcome

NAN = np.full(3, np.nan)


def bench_of(**updates):
    """Make a benchmark of two tasks from label → updates (tasks, seeds)."""
    outcomes = {
        (f"task {k}", label): Outcome(
            *(f"task {k}", label, {}, 0, np.array(of_task, float), NAN, NAN, 0.5, "m", 1, 1, 0)
        )
        for label, of_optimizer in updates.items()
        for k, of_task in enumerate(of_optimizer)
    }
    goals = {
        name: Goal(name, None, "loss", False, 0.1, False, 9, 1) for name in ("task 0", "task 1")
    }
    return Bench(goals, {label: {} for label in updates}, outcomes, 1, [1, 2, 3])


@pytest.fixture(scope="module")
def bench():
    return bench_of(
        slow=[[40, 40, 40], [math.inf] * 3],
        fast=[[10, 12, 14], [20, 20, 20]],
    )


PLOTS = [plots.plot_profile, plots.plot_areas, plots.plot_costs]


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("measure", ["updates", "seconds"])
def test_plots_draw_on_the_axes_they_are_given_or_on_new_ones(plot, measure, bench):
    ax = plot(bench, measure=measure)
    assert ax.get_title(loc="left")
    assert plot(bench, measure=measure, ax=ax) is ax


def test_profiles_are_steps_in_the_order_of_the_areas(bench):
    lines = plots.plot_profile(bench).get_lines()
    assert [line.get_label() for line in lines] == ["fast", "slow"]
    # `slow` takes 40/12 times as long on one of two tasks; the second line is moved by 0.004.
    np.testing.assert_allclose(lines[0].get_ydata(), 1)
    jump = lines[1].get_xdata()[np.argmax(lines[1].get_ydata() > 0.4)]
    np.testing.assert_allclose(jump, 3.35)  # the first of 61 factors that is not below 40/12


def test_the_table_of_costs_shows_medians_and_dashes(bench):
    texts = [text.get_text() for text in plots.plot_costs(bench).texts]
    assert texts == ["12", "40", "20", "–"]


def test_areas_have_intervals(bench):
    ax = plots.plot_areas(bench)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["fast", "slow"]
    low, high = ax.get_lines()[2].get_xdata()
    assert 0 <= low <= bench.profile().areas["slow"].value <= high <= 1


@pytest.mark.parametrize("draw", [plots.plot_bench, lambda b, **options: b.plot(**options)])
def test_the_figure_has_all_three(draw, bench, tmp_path):
    figure = draw(bench, measure="seconds")
    assert len(figure.axes) == 3
    figure.savefig(tmp_path / "bench.png")


def test_nobody_reaches_anything():
    hopeless = bench_of(a=[[math.inf] * 3] * 2)
    plots.plot_bench(hopeless)
    texts = [text.get_text() for text in plots.plot_costs(hopeless).texts]
    assert texts == ["–", "–"]


def test_many_optimizers_fit(tmp_path):
    names = [f"optimizer-{i}" for i in range(13)]
    bench = bench_of(**{name: [[10 + i] * 3, [20 - i] * 3] for i, name in enumerate(names)})
    plots.plot_bench(bench).savefig(tmp_path / "bench.png")
