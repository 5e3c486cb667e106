"""Charts as SVG: what is drawn, what is left out and said, and that nothing covers or breaks."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from optlab.lab.tuning._result import Chart, Series
from optlab.lab.tuning._svg import MOST_HITS, MOST_POINTS, WIDTH, Scale, draw


def chart(*series, **options):
    return Chart("Loss", "update", "loss", series, **options)


def parsed(drawing):
    return ElementTree.fromstring(drawing.svg)


def of_class(drawing, kind):
    return [e for e in parsed(drawing).iter() if kind in e.get("class", "").split()]


def titles(drawing):
    return [hit.find("title").text for hit in of_class(drawing, "hit")]


def texts(drawing):
    return [element.text for element in parsed(drawing).iter("text")]


def numbers(element):
    return [float(x) for x in re.findall(r"-?\d+\.?\d*", element.get("d"))]


def test_each_value_can_be_pointed_at():
    drawing = draw(chart(Series("run", [1, 2], [0.5, 0.25], texts=["begin", "end"])))
    assert titles(drawing) == [
        "run\nupdate: 1\nloss: 0.5\nbegin",
        "run\nupdate: 2\nloss: 0.25\nend",
    ]


def test_a_chart_says_what_it_is_to_those_who_do_not_see_it():
    root = parsed(draw(chart(Series("sgd", [1], [2]), Series("adam", [1], [3]))))
    assert root.get("role") == "img"
    assert root.get("aria-label") == "Loss: loss against update; sgd, adam"


def test_the_same_chart_is_the_same_text():
    made = [draw(chart(Series("a", range(3), [3, 1, 2]), marks={"end": 2.0})) for _ in range(2)]
    assert made[0] == made[1]


def test_names_are_not_markup():
    hostile = '<script>"&'
    series = Series(hostile, [hostile, "b"], [1, 2], kind="points", texts=[hostile, ""])
    other = Series("b", [hostile], [1.5], kind="points")
    drawing = draw(
        Chart(hostile, hostile, hostile, [series, other], levels={hostile: 1}, marks={hostile: 9})
    )
    # The parser refuses text that is not well-formed.
    assert not list(parsed(drawing).iter("script"))
    assert hostile in texts(drawing)


def test_a_gap_breaks_the_line_and_the_band():
    y = [1, 2, math.nan, 2, None, 3]
    low = [0, 1, 1, 1, 1, 2]
    drawing = draw(chart(Series("a", range(6), y, low=low, high=[3] * 6)))
    (line,) = of_class(drawing, "line")
    assert line.get("d").count("M") == 3
    assert "h0" in line.get("d")  # a value between two gaps is a dot
    assert len(titles(drawing)) == 4


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    ("x", "y"), [([], []), ([1], [math.nan]), ([math.nan], [1]), ([None], [None])]
)
def test_a_chart_without_values_says_so(x, y, log):
    drawing = draw(chart(Series("a", x, y), x_log=log, y_log=log))
    assert "no values yet" in texts(drawing)
    assert not titles(drawing)


def test_a_chart_without_series_says_so():
    assert "no values yet" in texts(draw(chart()))


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-300, 1e300, 12345.678])
@pytest.mark.parametrize("log", [False, True])
def test_one_value_has_an_axis_around_it(value, log):
    drawing = draw(chart(Series("a", [value], [value], kind="points"), x_log=log, y_log=log))
    (hit,) = of_class(drawing, "hit")
    x, y = map(float, re.findall(r"[\d.]+", hit.get("transform")))
    assert 0 < x < WIDTH
    assert 0 < y < float(parsed(drawing).get("viewBox").split()[3])
    assert len([t for t in of_class(drawing, "tick") if t.text]) >= 2


def test_numbers_at_the_limits_of_floats_are_drawn():
    top = float(np.finfo(np.float64).max)
    drawing = draw(chart(Series("a", [0, 1, 2], [-top, 0, top])))
    assert len(titles(drawing)) == 3
    assert "nan" not in drawing.svg


def test_values_that_a_logarithm_does_not_have_are_left_out_and_counted():
    series = Series("a", [0, 1e-3, 1e-1], [1, 2, 3], kind="points")
    drawing = draw(chart(series, x_log=True))
    assert len(titles(drawing)) == 2
    assert drawing.notes == (
        "One value of update is not above 0 and cannot be drawn on a logarithmic axis.",
    )


def test_an_axis_without_any_value_above_0_is_not_logarithmic():
    drawing = draw(chart(Series("a", [1, 2], [-1, 0]), y_log=True))
    assert len(titles(drawing)) == 2
    assert drawing.notes == ("No loss is above 0, so its axis is not logarithmic.",)


def test_a_thinned_line_keeps_every_spike():
    rng = np.random.default_rng(0)
    y = rng.normal(size=50_000)
    y[12_345], y[33_333] = 40.0, -40.0
    drawing = draw(chart(Series("a", range(len(y)), y)))
    (line,) = of_class(drawing, "line")
    # Four values for each unit of the width at most.
    assert line.get("d").count("L") < 4 * WIDTH
    heights = numbers(line)[1::2]
    # The axis has 6% of room beyond the two spikes, and no other value is near them.
    top, bottom = min(heights), max(heights)
    assert sum(height < top + 10 for height in heights) == 1
    assert sum(height > bottom - 10 for height in heights) == 1
    assert len(titles(drawing)) <= MOST_HITS + 2
    assert any("loss: 40" in title for title in titles(drawing))
    assert any("loss: -40" in title for title in titles(drawing))


def test_a_thinned_band_covers_the_whole_band():
    n = 5000
    low, high = np.zeros(n), np.ones(n)
    low[777], high[3210] = -5.0, 5.0
    drawing = draw(chart(Series("a", range(n), np.full(n, 0.5), low=low, high=high)))
    (band,) = of_class(drawing, "band")
    heights = numbers(band)[1::2]
    ticks = [e for e in of_class(drawing, "tick") if e.get("text-anchor") == "end"]
    (zero,) = (tick for tick in ticks if tick.text == "0")
    middle = float(zero.get("y")) - 4
    assert min(heights) < middle - 50
    assert max(heights) > middle + 50


def test_thinned_points_lie_where_points_were_and_their_number_is_said():
    rng = np.random.default_rng(0)
    x, y = rng.random((2, 20_000))
    drawing = draw(chart(Series("a", x, y, kind="points")))
    shown = len(titles(drawing))
    assert MOST_POINTS / 4 < shown <= MOST_POINTS
    assert drawing.notes[0].startswith(f"{shown:,} of 20,000 points are drawn")


def test_few_points_on_one_place_are_all_drawn():
    drawing = draw(chart(Series("a", [1] * 9, [2] * 9, kind="points")))
    assert len(titles(drawing)) == 9
    assert not drawing.notes


def test_error_bars_end_where_they_should():
    series = Series("a", ["x", "y"], [1, 2], kind="points", low=[0.5, 1], high=[2, math.inf])
    drawing = draw(chart(series))
    assert len(of_class(drawing, "bar")) == 2
    assert "loss: 2 (1 to ∞)" in titles(drawing)[1]


def test_choices_keep_their_order_and_mix_with_numbers():
    drawing = draw(chart(Series("a", ["relu", "gelu", 3], [1, 2, 3], kind="points")))
    labels = [t.text for t in of_class(drawing, "tick")][-3:]
    assert labels == ["relu", "gelu", "3"]


def test_names_of_choices_are_broken_into_lines_where_these_fit():
    names = ["adamw, cosine, rate 0.01", "adamw, wsd, rate 0.02", "sgd, one cycle, rate 1"]
    drawing = draw(chart(Series("a", names, [1, 2, 3], kind="points")))
    ticks = [t for t in of_class(drawing, "tick") if t.get("text-anchor") == "middle"]
    lines = {}
    for tick in ticks:
        lines.setdefault(tick.get("x"), []).append(tick.text)
    assert [" ".join(words) for words in lines.values()] == names
    height = float(parsed(drawing).get("viewBox").split()[3])
    assert max(float(tick.get("y")) for tick in ticks) < height - 18  # above the axis's name


def test_names_that_differ_at_their_ends_still_do_where_they_are_shortened():
    names = [f"an-optimizer-with-a-long-name-{i}" for i in range(12)]
    drawing = draw(chart(Series("a", names, range(12), kind="points")))
    turned = [t.text for t in of_class(drawing, "tick") if t.get("transform")]
    assert len(set(turned)) == len(turned) == 12


def test_choices_that_are_numbers_stand_in_their_order_and_lines_follow_it():
    drawing = draw(chart(Series("a", ["32", "64", "16", "1,024"], [1, 2, 3, 4])))
    labels = [t.text for t in of_class(drawing, "tick")][-4:]
    assert labels == ["16", "32", "64", "1,024"]
    (line,) = of_class(drawing, "line")
    across = numbers(line)[::2]
    assert across == sorted(across)
    assert [title.splitlines()[1:] for title in titles(drawing)][:2] == [
        ["update: 16", "loss: 3"],
        ["update: 32", "loss: 1"],
    ]


@pytest.mark.parametrize("count", [1, 3, 12, 80])
def test_long_names_of_choices_stay_inside(count):
    names = [f"a rather long name, number {i}" for i in range(count)]
    drawing = draw(chart(Series("a", names, range(count), kind="points")))
    turned = [t for t in of_class(drawing, "tick") if t.get("transform")]
    assert len(turned) <= 24  # more would cover each other
    for text in turned:
        # The width of a character, and the cosine of 35 degrees.
        assert float(text.get("x")) - 6.5 * 0.819 * len(text.text) > -8
    assert all(len(text) <= 30 for text in texts(drawing))


def test_names_of_vertical_lines_do_not_cover_each_other():
    marks = {f"update {i} of many": 50.0 + i for i in range(4)}
    drawing = draw(chart(Series("a", [0, 100], [1, 2]), marks=marks))
    names = of_class(drawing, "mark-name")
    assert len({name.get("y") for name in names}) == 4
    assert len(of_class(drawing, "mark")) == 4


def test_levels_that_lie_close_together_share_a_name():
    levels = {"log 10": 2.303, "best guess": 2.302, "aim": 1.0}
    drawing = draw(chart(Series("a", [0, 1], [0.5, 3]), levels=levels))
    assert [name.text for name in of_class(drawing, "level-name")] == ["log 10, best guess", "aim"]
    assert len(of_class(drawing, "level")) == 3


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_name_of_a_level_at_the_edge_stays_inside(value):
    drawing = draw(chart(Series("a", [0, 1], [0, 1]), levels={"edge": value}))
    (name,) = of_class(drawing, "level-name")
    (axis,) = (e for e in of_class(drawing, "axis") if "h" in e.get("d"))
    bottom = numbers(axis)[1]
    assert bottom - 180 + 8 < float(name.get("y")) < bottom


@pytest.mark.parametrize("high", [0.012, 0.016, 0.02, 0.03])
def test_numbers_on_a_logarithmic_axis_do_not_cover_each_other(high):
    drawing = draw(chart(Series("a", [0.006, high], [1, 2]), x_log=True))
    labels = [t for t in of_class(drawing, "tick") if t.get("text-anchor") == "middle"]
    ends = [(float(t.get("x")), 6.5 * len(t.text) / 2) for t in labels]
    assert len(labels) >= 2
    for (left, half), (right, other) in pairwise(ends):
        assert left + half < right - other


def test_a_mark_that_cannot_be_drawn_is_said():
    drawing = draw(chart(Series("a", ["x"], [1], kind="points"), marks={"best": 1.0}))
    assert drawing.notes == ("The mark 'best' lies outside of the axis.",)


def test_lines_of_marks_and_levels_are_inside_the_axes():
    drawing = draw(chart(Series("a", [0, 1], [0, 1]), marks={"far": 9.0}, levels={"high": 7.0}))
    (mark,), (level,) = of_class(drawing, "mark"), of_class(drawing, "level")
    (axis,) = (e for e in of_class(drawing, "axis") if "h" in e.get("d"))
    left, bottom, width = numbers(axis)
    assert left < numbers(mark)[0] <= left + width
    assert numbers(level)[1] < bottom


def test_many_series_have_a_legend_of_some_names_and_the_number_of_the_rest():
    series = [Series(f"seed {i}", [0, 1], [i, i + 1]) for i in range(40)]
    drawing = draw(chart(*series))
    assert "and 30 more" in texts(drawing)
    assert len(of_class(drawing, "line")) >= 40
    styles = {line.get("class") for line in of_class(drawing, "line")[10:]}
    assert len(styles) == 24  # six colours, each solid and with three kinds of dashes


def test_series_of_one_name_share_their_colour():
    drawing = draw(chart(Series("a", [0, 1], [0, 1]), Series("a", [0, 1], [1, 2])))
    assert {line.get("class") for line in of_class(drawing, "line")} == {"line c0"}


@pytest.mark.parametrize(
    ("low", "high", "log", "labels"),
    [
        (0, 1, False, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.912, 0.951, False, ["0.92", "0.93", "0.94", "0.95"]),
        (0, 10, False, ["0", "2", "4", "6", "8", "10"]),
        (0, 1.2, False, ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        (-5, 5, False, ["-4", "-2", "0", "2", "4"]),
        (0, 20_000, False, ["0", "5,000", "10,000", "15,000", "20,000"]),
        (0, 4e6, False, ["0", "10⁶", "2·10⁶", "3·10⁶", "4·10⁶"]),
        (0, 4e-5, False, ["0", "10⁻⁵", "2·10⁻⁵", "3·10⁻⁵", "4·10⁻⁵"]),
        (1e-6, 1, True, ["10⁻⁶", "10⁻⁴", "10⁻²", "10⁰"]),
        (1e-3, 1, True, ["0.001", "0.01", "0.1", "1"]),
        (0.05, 3, True, ["0.05", "0.1", "0.2", "0.5", "1", "2"]),
        (1.1, 1.4, True, ["1.1", "1.2", "1.3", "1.4"]),
    ],
)
def test_ticks_are_numbers_that_people_read(low, high, log, labels):
    assert [tick.label for tick in Scale(low, high, log).ticks()] == labels
