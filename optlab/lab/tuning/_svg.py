"""A `Chart` as an inline SVG: the same text for the same chart, coloured by the page it stands in.

Lengths are in units of the drawing, which is about as wide as a phone and is scaled to its column.
Colours and strokes are those of the classes in `report.css`. Each value that can be pointed at is
an element of class "hit" with a <title>, which browsers show on hover; the script of the report
shows the nearest one instead.

Long lines and clouds are thinned to what can be seen: of a line the first, lowest, highest and last
value of each unit of its width; of points one in each cell of a grid, whose cells grow until few
enough are left. A note says how many points are left out.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np

from optlab.lab.tuning._result import Chart, Series
from optlab.lab.tuning._texts import (
    as_number,
    escaped,
    is_number,
    number,
    power,
    shortened,
    shortened_inside,
)

WIDTH, PLOT_HEIGHT = 380, 180
COLORS = 6
"""Colours, and markers of points, in `report.css`; further series begin again, dashed."""

MARKERS = (
    "M-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0-6.4 0z",
    "M-3-3h6v6h-6z",
    "M0-4L3.9 3H-3.9z",
    "M0-4.2L4.2 0L0 4.2L-4.2 0z",
    "M0 4L3.9-3H-3.9z",
    "M-3.4-1.2h2.2v-2.2h2.4v2.2h2.2v2.4h-2.2v2.2h-2.4v-2.2h-2.2z",
)
MOST_POINTS = 800
"""Points that are drawn in a chart."""

MOST_HITS = 240
"""Values of all lines of a chart that can be pointed at."""

MARK_HEIGHT = 15
"""A row of names of vertical lines."""

MOST_NAMES = 10
"""Names in a legend."""

FONT = 12
CHARACTER = 6.5
"""The width of a character of the usual text; an estimate that is rarely too small."""

WIDE = 7.4
"""The width of a character of a name with many digits and capitals, as those of series have."""

TURN = 35
SINE, COSINE = 0.574, 0.819
"""The angle of names that have no room beside each other, in degrees."""

LONGEST = 22
"""Characters of the name of a choice on an axis."""

LINE, MOST_LINES = 15, 4
"""The height of a line of text, and the lines of the name of a choice."""


class Drawing(NamedTuple):
    """A chart for a page.

    Attributes:
        svg: one <svg> element.
        notes: sentences about what could not be drawn.
    """

    svg: str
    notes: tuple[str, ...]


class Tick(NamedTuple):
    """A place on an axis, as a share of its length, and its label."""

    share: float
    label: str


@dataclass(frozen=True)
class Scale:
    """An axis of numbers from `low` to `high`, which differ."""

    low: float
    high: float
    log: bool

    def shares(self, values: Any) -> np.ndarray:
        """Return the places of values as shares of the length of the axis."""
        values = np.asarray(values, np.float64)
        low, high = self.low, self.high
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.log:
                low, values, high = np.log10(low), np.log10(values), np.log10(high)
            # Halves, as the difference of two large numbers would overflow.
            return (values / 2 - low / 2) / (high / 2 - low / 2)

    def ticks(self) -> list[Tick]:
        """Return two to seven ticks."""
        values = _log_ticks(self.low, self.high) if self.log else []
        is_power = bool(values)
        values = values or _nice_ticks(self.low, self.high)
        labels = _power_labels(values) if is_power else _labels(values)
        return [Tick(float(self.shares(v)), t) for v, t in zip(values, labels, strict=True)]


@dataclass(frozen=True)
class Choices:
    """An axis of names."""

    names: Sequence[str]

    def shares(self, values: Any) -> np.ndarray:
        """Return the places of names as shares of the length of the axis."""
        places = {name: (i + 0.5) / len(self.names) for i, name in enumerate(self.names)}
        return np.array([places.get(choice_text(value), np.nan) for value in values], np.float64)

    def ticks(self) -> list[Tick]:
        """Return a tick for each name."""
        return [Tick((i + 0.5) / len(self.names), name) for i, name in enumerate(self.names)]


@dataclass(frozen=True)
class _Values:
    """The arrays of a series, (n,) each; `low` and `high` are empty or (n,)."""

    series: Series
    x: list
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    style: int


def draw(chart: Chart) -> Drawing:
    """Draw a chart.

    Args:
        chart: what to draw; series without values, and charts without series, are allowed.

    Example:
        >>> losses = Series("loss", range(3), [1.0, 0.5, 0.25])
        >>> drawing = draw(Chart("Loss of the run", "update", "loss", [losses]))
        >>> drawing.svg[:26], drawing.notes
        ('<svg class="chart" viewBox', ())
    """
    return _Drawer(chart).draw()


def is_choice(x: Sequence[Any]) -> bool:
    """Return whether values on an axis are names, and not numbers."""
    return any(isinstance(value, str | bool) for value in x)


def choice_text(value: Any) -> str:
    """Return the name of a value on an axis of names."""
    return value if isinstance(value, str) else number(value)


def choices_of(values: Sequence[Any]) -> list[str]:
    """Return the different names on an axis; numbers in their order, others as they come."""
    names = list(dict.fromkeys(map(choice_text, values)))
    if all(map(is_number, names)):
        names.sort(key=as_number)
    return names


def floats(values: Sequence[Any]) -> np.ndarray:
    """Return numbers as an array; None, which JSON has in place of NaN, is NaN."""
    return np.array([math.nan if value is None else float(value) for value in values], np.float64)


class _Drawer:
    """The parts of one drawing."""

    def __init__(self, chart: Chart):
        self.chart, self.notes = chart, []
        names = list(dict.fromkeys(series.name for series in chart.series))
        self.styles = {name: i for i, name in enumerate(names)}
        all_x = [x for series in chart.series for x in series.x]
        self.names = choices_of(all_x) if is_choice(all_x) else []
        self.values = [self._values(series) for series in chart.series]
        self.x_axis = Choices(self.names) if self.names else self._x_scale()
        self.y_axis = self._y_scale()

    def draw(self) -> Drawing:
        y_ticks = self.y_axis.ticks()
        longest = max((len(tick.label) for tick in y_ticks), default=1)
        self.left = 10 + CHARACTER * longest
        self.lines = self._lines_of_names()
        if self.names and not self.lines:
            # The first name reaches to the left of its place, which is half a share from the axis.
            reach = COSINE * self._longest_name()
            share = 0.5 / len(self.names)
            self.left = max(self.left, (reach - share * (WIDTH - 12)) / (1 - share))
        self.width = WIDTH - 12 - self.left
        legend, legend_height = self._legend()
        marks, mark_rows = self._marks()
        self.top = 26 + legend_height + MARK_HEIGHT * mark_rows
        x_labels, x_height = self._x_labels()
        self.bottom = self.top + PLOT_HEIGHT
        height = self.bottom + x_height + 24
        parts = [
            self._text(0, 13, shortened(self.chart.y_label, 54), "axis-name"),
            *legend,
            *self._grid(y_ticks),
            *x_labels(self.bottom),
            self._text(
                self.left + self.width / 2,
                height - 6,
                shortened(self.chart.x_label, 46),
                "axis-name",
                anchor="middle",
            ),
        ]
        order = sorted(self.values, key=lambda values: values.series.kind == "points")
        parts += [part for values in order for part in self._band(values)]
        parts += [*marks(), *self._levels()]
        lines = sum(values.series.kind != "points" for values in order)
        for values in order:
            if values.series.kind == "points":
                continue
            parts += self._line(values, MOST_HITS // lines)
        parts += self._points([v for v in order if v.series.kind == "points"])
        if not any(np.isfinite(self._places(values)).all(0).any() for values in self.values):
            middle = self.left + self.width / 2, self.top + PLOT_HEIGHT / 2
            parts.append(self._text(*middle, "no values yet", "empty", anchor="middle"))
        head = (
            f'<svg class="chart" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
            f'aria-label="{escaped(self._label())}">'
        )
        return Drawing("\n".join([head, *parts, "</svg>"]), tuple(self.notes))

    def _label(self) -> str:
        names = [name for name in self.styles if name]
        text = f"{self.chart.title}: {self.chart.y_label} against {self.chart.x_label}"
        return f"{text}; {', '.join(names[:MOST_NAMES])}" if names else text

    def _values(self, series: Series) -> _Values:
        if self.names and series.kind != "points":
            series = _sorted(series, self.names)
        x = list(map(choice_text, series.x)) if self.names else list(floats(series.x))
        arrays = map(floats, (series.y, series.low, series.high))
        return _Values(series, x, *arrays, self.styles[series.name])

    def _x_scale(self) -> Scale:
        values = [np.array(entry.x, np.float64) for entry in self.values]
        return self._scale(self.chart.x_label, self.chart.x_log, values, self.chart.marks, 0.02)

    def _y_scale(self) -> Scale:
        arrays = [a for entry in self.values for a in (entry.y, entry.low, entry.high)]
        return self._scale(self.chart.y_label, self.chart.y_log, arrays, self.chart.levels, 0.06)

    def _scale(
        self,
        label: str,
        log: bool,
        arrays: Sequence[np.ndarray],
        lines: Mapping[str, float],
        room: float,
    ) -> Scale:
        """Return the axis that holds all values and lines, with some room at both ends."""
        values = np.concatenate([*arrays, floats(list(lines.values())), np.zeros(0)])
        values = values[np.isfinite(values)]
        if log:
            lost = int((values <= 0).sum())
            values = values[values > 0]
            if lost and not len(values):
                self.notes.append(f"No {label} is above 0, so its axis is not logarithmic.")
                return self._scale(label, False, arrays, lines, room)
            if lost:
                what = "One value" if lost == 1 else f"{lost:,} values"
                is_are = "is" if lost == 1 else "are"
                self.notes.append(
                    f"{what} of {label} {is_are} not above 0 and cannot be drawn on a "
                    "logarithmic axis."
                )
        if not len(values):
            return Scale(1.0, 10.0, log) if log else Scale(0.0, 1.0, log)
        low, high = float(values.min()), float(values.max())
        if log:
            low, high = _widened(math.log10(low), math.log10(high), room, least=0.02)
            return Scale(10 ** max(low, -307.0), 10 ** min(high, 308.0), log)
        return Scale(*_widened(low, high, room, least=1e-9), log)

    def _places(self, values: _Values) -> np.ndarray:
        """Return (2, n) positions in the drawing; NaN where there is none."""
        sound = np.isfinite(values.y) & np.isfinite(self.y_axis.shares(values.y))
        return np.stack([self._across(values.x), np.where(sound, self._down(values.y), np.nan)])

    def _across(self, x: Any) -> np.ndarray:
        shares = self.x_axis.shares(x)
        return self.left + self.width * np.where(np.isfinite(shares), shares, np.nan)

    def _down(self, y: Any) -> np.ndarray:
        shares = self.y_axis.shares(y)
        # An end of a band may be infinite, or not above 0 on a logarithmic axis.
        return self.bottom - PLOT_HEIGHT * np.clip(shares, 0, 1)

    def _text(
        self, x: float, y: float, text: str, kind: str, *, anchor: str = "", turn: float = 0
    ) -> str:
        place = f'x="{x:.1f}" y="{y:.1f}"'
        anchor = f' text-anchor="{anchor}"' if anchor else ""
        turned = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
        return f'<text class="{kind}" {place}{anchor}{turned}>{escaped(text)}</text>'

    def _legend(self) -> tuple[list[str], float]:
        """Return the names of the series below the name of the y axis, and their height."""
        names = [name for name in self.styles if name]
        kinds = {series.name: series.kind for series in self.chart.series}
        if len(self.styles) == 1:
            return [], 0
        parts, x, row = [], 0.0, 0
        more = len(names) - MOST_NAMES
        for name in [*names[:MOST_NAMES], *([f"and {more} more"] if more > 0 else [])]:
            text = shortened(name, 46)
            length = 24 + WIDE * len(text)
            if x and x + length > WIDTH:
                x, row = 0.0, row + 1
            y = 32 + 17 * row
            if name in kinds:
                style = _style(self.styles[name])
                sample = f'<path class="line {style}" d="M{x:.1f} {y - 4}h16"/>'
                if kinds[name] == "points":
                    sample = self._marker(x + 8, y - 4, self.styles[name])
                parts.append(sample)
            parts.append(self._text(x + 21, y, text, "name"))
            x += length + 4
        return parts, 17 * (row + 1) if parts else 0

    def _grid(self, ticks: Sequence[Tick]) -> Iterator[str]:
        for share, label in ticks:
            y = self.bottom - PLOT_HEIGHT * share
            yield f'<path class="grid" d="M{self.left:.1f} {y:.1f}h{self.width:.1f}"/>'
            yield self._text(self.left - 6, y + 4, label, "tick", anchor="end")
        yield f'<path class="axis" d="M{self.left:.1f} {self.bottom:.1f}h{self.width:.1f}"/>'

    def _x_labels(self) -> tuple[Callable[[float], Iterator[str]], float]:
        """Return a function from the place of the axis to its labels, and their height."""
        ticks = self.x_axis.ticks()
        if self.lines:
            lines = self.lines
        elif self.names:
            return self._turned_names(ticks)
        else:
            lines = [[tick.label] for tick in ticks]

        def labels(bottom: float) -> Iterator[str]:
            end = -math.inf
            for tick, texts in zip(ticks, lines, strict=True):
                x = self.left + self.width * tick.share
                yield f'<path class="axis" d="M{x:.1f} {bottom:.1f}v4"/>'
                half = CHARACTER * max(map(len, texts)) / 2
                x = min(max(x, half), WIDTH - half)
                if x - half < end + 5 and not self.names:
                    continue  # on a logarithmic axis, ticks come closer and closer
                end = x + half
                for row, text in enumerate(texts):
                    y = bottom + 17 + LINE * row
                    yield self._text(x, y, text, "tick", anchor="middle")

        return labels, 20 + LINE * (max(map(len, lines), default=1) - 1)

    def _turned_names(
        self, ticks: Sequence[Tick]
    ) -> tuple[Callable[[float], Iterator[str]], float]:
        """Return what `_x_labels` does, for names that have no room beside each other."""
        every = math.ceil(LINE * len(ticks) / self.width)

        def labels(bottom: float) -> Iterator[str]:
            for tick in ticks[::every]:
                x = self.left + self.width * tick.share
                yield f'<path class="axis" d="M{x:.1f} {bottom:.1f}v4"/>'
                text = shortened_inside(tick.label, LONGEST)
                yield self._text(x + 4, bottom + 14, text, "tick", anchor="end", turn=-TURN)

        return labels, 14 + SINE * self._longest_name()

    def _longest_name(self) -> float:
        """Return the length of the longest name of a choice, as it is written when turned."""
        return CHARACTER * min(max(map(len, self.names)), LONGEST)

    def _lines_of_names(self) -> list[list[str]]:
        """Return the lines of the names of choices; [] if they have no room beside each other."""
        room = (WIDTH - 12 - self.left) / max(1, len(self.names)) - 4
        characters = max(1, int(room / CHARACTER))
        lines = [wrap(name, characters, break_long_words=False) or [""] for name in self.names]
        longest = max((len(line) for name in lines for line in name), default=0)
        fits = longest <= characters and max(map(len, lines), default=0) <= MOST_LINES
        return lines if fits else []

    def _band(self, values: _Values) -> Iterator[str]:
        """Yield the band around a line."""
        if not len(values.low) or values.series.kind == "points":
            return
        x = self._across(values.x)
        low, high = self._down(values.low), self._down(values.high)
        for part in _runs(np.isfinite(x) & np.isfinite(low) & np.isfinite(high)):
            starts = _columns(x[part])
            xs = x[part][starts]
            lows = np.maximum.reduceat(low[part], starts)
            highs = np.minimum.reduceat(high[part], starts)
            path = _path(np.concatenate([xs, xs[::-1]]), np.concatenate([highs, lows[::-1]]))
            yield f'<path class="band {_style(values.style)}" d="{path}z"/>'

    def _line(self, values: _Values, most_hits: int) -> Iterator[str]:
        x, y = self._places(values)
        path, kept = [], []
        for part in _runs(np.isfinite(x) & np.isfinite(y)):
            chosen = part[_extremes(x[part], y[part])]
            kept.append(chosen)
            path.append(_path(x[chosen], y[chosen]))
        if not kept:
            return
        yield f'<path class="line {_style(values.style)}" d="{"".join(path)}"/>'
        for i in _some(np.concatenate(kept), y, most_hits):
            yield self._hit(values, i, x[i], y[i], "M-5-5h10v10h-10z", "hit")

    def _points(self, clouds: Sequence[_Values]) -> Iterator[str]:
        places = [self._places(values) for values in clouds]
        sound = [np.flatnonzero(np.isfinite(place).all(0)) for place in places]
        total = sum(map(len, sound))
        for cell in (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32):
            chosen = [
                rows[_one_in_each_cell(place[:, rows], cell)] if cell else rows
                for place, rows in zip(places, sound, strict=True)
            ]
            left = sum(map(len, chosen))
            if left <= MOST_POINTS:
                break
        if left < total:
            self.notes.append(
                f"{left:,} of {total:,} points are drawn; the others lie beside them, and would "
                "cover them."
            )
        for values, place, rows in zip(clouds, places, chosen, strict=True):
            for i in rows:
                if len(values.low):
                    x = place[0, i]
                    low, high = self._down([values.low[i], values.high[i]])
                    if np.isfinite([low, high]).all():
                        bar = f"M{x:.1f} {high:.1f}V{low:.1f}m-4 0h8M{x - 4:.1f} {high:.1f}h8"
                        yield f'<path class="bar {_style(values.style)}" d="{bar}"/>'
            for i in rows:
                shape = MARKERS[values.style % COLORS]
                yield self._hit(values, i, *place[:, i], shape, f"hit dot {_style(values.style)}")

    def _marker(self, x: float, y: float, style: int) -> str:
        place = f'transform="translate({x:.1f},{y:.1f})"'
        return f'<path class="dot {_style(style)}" {place} d="{MARKERS[style % COLORS]}"/>'

    def _hit(self, values: _Values, i: int, x: float, y: float, shape: str, kind: str) -> str:
        """Return the element of one value, with its numbers as a title."""
        series, chart = values.series, self.chart
        lines = [series.name] if series.name else []
        lines.append(f"{chart.x_label}: {choice_text(values.x[i])}")
        text = f"{chart.y_label}: {number(values.y[i])}"
        if len(values.low):
            text += f" ({number(values.low[i])} to {number(values.high[i])})"
        lines.append(text)
        if len(series.texts) and series.texts[i]:
            lines.append(series.texts[i])
        place = f'transform="translate({x:.1f},{y:.1f})"'
        title = escaped("\n".join(lines))
        return f'<path class="{kind}" {place} d="{shape}"><title>{title}</title></path>'

    def _levels(self) -> Iterator[str]:
        """Yield the horizontal lines; those that lie close together share a name above them."""
        places = self._down(floats(list(self.chart.levels.values())))
        groups: list[list[tuple[float, str]]] = []
        for y, label in sorted(zip(places, self.chart.levels, strict=True)):
            if not math.isfinite(y):
                continue
            yield f'<path class="level" d="M{self.left:.1f} {y:.1f}h{self.width:.1f}"/>'
            if groups and y - groups[-1][-1][0] < FONT + 4:
                groups[-1].append((y, label))
            else:
                groups.append([(y, label)])
        for group in groups:
            above, below = group[0][0] - 4, group[-1][0] + FONT
            base = below if above - FONT < self.top and below < self.bottom else above
            text = shortened(", ".join(label for _, label in group), 50)
            right = self.left + self.width
            yield self._text(right, base, text, "level-name", anchor="end")

    def _marks(self) -> tuple[Callable[[], Iterator[str]], int]:
        """Return the vertical lines, once the plot's top is known, and the rows of their names.

        The names stand above the plot, in as many rows as keep them from covering each other.
        """
        values = list(self.chart.marks.values())
        places = self._across(values if self.names else floats(values))
        ends: list[float] = []
        placed = []
        for x, label in sorted(zip(places, self.chart.marks, strict=True), key=lambda m: m[0]):
            if not math.isfinite(x):
                self.notes.append(f"The mark {label!r} lies outside of the axis.")
                continue
            text = shortened(label, 40)
            length = CHARACTER * len(text)
            start = min(x, WIDTH - length)
            row = next((i for i, end in enumerate(ends) if end <= start), len(ends))
            ends[row : row + 1] = [start + length + 8]
            placed.append((x, start, row, text))

        def lines() -> Iterator[str]:
            for x, start, row, text in placed:
                y = self.top - MARK_HEIGHT * row
                yield f'<path class="mark" d="M{x:.1f} {y - 2:.1f}V{self.bottom:.1f}"/>'
                yield self._text(start, y - 5, text, "mark-name")

        return lines, len(ends)


def _style(index: int) -> str:
    """Return the classes of a series: its colour, and dashes from the second round of colours."""
    return f"c{index % COLORS}" + (f" d{min(index // COLORS, 3)}" if index >= COLORS else "")


def _sorted(series: Series, names: Sequence[str]) -> Series:
    """Return a line with its values in the order of the names on the axis."""
    places = {name: place for place, name in enumerate(names)}
    order = sorted(range(len(series.x)), key=lambda i: places[choice_text(series.x[i])])
    fields = ("x", "y", "low", "high", "texts")
    values = {name: getattr(series, name) for name in fields if len(getattr(series, name))}
    return replace(series, **{name: [own[i] for i in order] for name, own in values.items()})


def _widened(low: float, high: float, room: float, *, least: float) -> tuple[float, float]:
    """Return a range with room at both ends; a single number gets a range around it."""
    reach = room * (high / 2 - low / 2) * 2
    if not reach > least * max(abs(low), abs(high)):
        reach = max(abs(low), abs(high)) * 0.1 or 1.0
    largest = float(np.finfo(np.float64).max) / 4
    return max(low - reach, -largest), min(high + reach, largest)


def _nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return multiples of 1, 2, 2.5 or 5 times a power of ten, at most `most` of them."""
    span = high - low
    unit = 10.0 ** math.floor(math.log10(span / most))
    for factor in (1, 2, 2.5, 5, 10, 20):
        step = factor * unit
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            break
    return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten, or these with 2 and 5 times them; none where there would be too few."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    count = last - first + 1
    if count >= 3:
        every = math.ceil(count / 6)
        return [10.0**i for i in range(first, last + 1) if i % every == 0]
    values = [m * 10.0**i for i in range(first - 1, last + 1) for m in (1, 2, 5)]
    inside = [value for value in values if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
    return inside if len(inside) >= 3 else []


def _labels(values: Sequence[float]) -> list[str]:
    """Write the ticks of a linear axis with as many decimals as tell them apart."""
    largest = max(map(abs, values), default=0.0)
    step = min(np.diff(values), default=largest)
    if largest >= 1e6 or 0 < largest < 1e-3:
        return [power(value) for value in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step else 0
    # A quarter of a power of ten has one decimal more.
    decimals += round(step * 10**decimals, 6) % 1 != 0
    return [f"{value + 0.0:,.{decimals}f}" for value in values]


def _power_labels(values: Sequence[float]) -> list[str]:
    """Write the ticks of a logarithmic axis, all in one form."""
    if values[0] >= 0.999e-3 and values[-1] < 1e5:
        return [f"{value:,.10g}" for value in values]
    return [power(value) for value in values]


def _runs(sound: np.ndarray) -> list[np.ndarray]:
    """Return the indices of each stretch of values without a gap."""
    indices = np.flatnonzero(sound)
    return np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1) if len(indices) else []


def _columns(x: np.ndarray) -> np.ndarray:
    """Return where each unit of the width begins; of few values, each of them."""
    if len(x) <= WIDTH:
        return np.arange(len(x))
    return np.flatnonzero(np.diff(np.floor(x), prepend=np.nan) != 0)


def _extremes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the indices of the first, lowest, highest and last value of each unit of width."""
    starts = _columns(x)
    if len(starts) == len(x):
        return starts
    kept = set()
    for start, stop in zip(starts, [*starts[1:], len(x)], strict=True):
        part = y[start:stop]
        kept |= {start, stop - 1, start + int(part.argmin()), start + int(part.argmax())}
    return np.array(sorted(kept))


def _some(indices: np.ndarray, y: np.ndarray, most: int) -> np.ndarray:
    """Return at most about `most` of the indices, the lowest and the highest value among them."""
    if len(indices) <= most:
        return indices
    even = np.linspace(0, len(indices) - 1, max(most, 2)).astype(int)
    heights = y[indices]
    return indices[np.unique([*even, heights.argmin(), heights.argmax()])]


def _one_in_each_cell(places: np.ndarray, cell: float) -> np.ndarray:
    """Return the indices of the first point in each cell of a grid."""
    _, first = np.unique(np.floor(places / cell), axis=1, return_index=True)
    return np.sort(first)


def _path(x: np.ndarray, y: np.ndarray) -> str:
    """Return a line through points; a single point is a line of no length, drawn as a dot."""
    points = [f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True)]
    return f"M{points[0]}h0" if len(points) == 1 else f"M{'L'.join(points)}"
