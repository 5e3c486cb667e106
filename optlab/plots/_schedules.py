"""`plot_schedules`: the values of schedules at each step."""

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._types import Schedule
from optlab.plots._common import LABEL_WIDTH, new_axes, style_of
from optlab.schedules import OneCycle

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAMPLES = 2000
"""Longest schedule drawn at every step; longer ones are sampled at this many steps."""

LAST_STEP = 2**31 - 1
"""The last step that an optimizer counts."""


def plot_schedules(
    schedules: Mapping[str, Schedule | OneCycle], *, steps: int, ax: "Axes | None" = None
) -> "Axes":
    """Draw the values of schedules against the updates done, with a marker at each knot.

    The momentum of a one-cycle schedule is drawn in its own panel below, which takes a part of the
    space of `ax`.

    Args:
        schedules: label → a schedule, from this library or from Optax, or a `OneCycle`.
        steps: the last step shown, in [1, 2³¹ − 1]; a run of this many updates ends just before it.
        ax: the axes to draw on; None for a new figure.

    Returns:
        The axes of the values; the axes of the momentum, if any, are the last of the figure.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
        ValueError: there is no schedule, `steps` is out of range, or a value is not finite.

    Example:
        >>> from optlab import schedules
        >>> ax = plot_schedules({"cosine": schedules.cosine(0.1, decay_steps=50)}, steps=60)
        >>> ax.get_xlabel()
        'optimizer updates done'
    """
    who = "plot_schedules"
    _checks.check_integer(who, "steps", steps, 1)
    if steps > LAST_STEP:
        _checks.fail(who, f"steps must be at most 2³¹ − 1 = {LAST_STEP}", f"steps={steps}")
    if not schedules:
        _checks.fail(who, "schedules must hold at least one", "none")
    cycles = {label: s for label, s in schedules.items() if isinstance(s, OneCycle)}
    values = {
        label: _sampled(who, label, s.learning_rate if label in cycles else s, steps)
        for label, s in schedules.items()
    }
    momenta = {label: _sampled(who, label, s.momentum, steps) for label, s in cycles.items()}
    wrapped_labels = {
        label: textwrap.fill(label, LABEL_WIDTH, subsequent_indent="    ") for label in values
    }
    if ax is None:
        ax = new_axes(who)
        lines = sum(text.count("\n") + 1 for text in wrapped_labels.values())
        ax.figure.set_figheight(4.8 + 0.2 * lines + 1.2 * bool(cycles))
    ax.set_ylabel("learning rate" if cycles else "value")
    panels = {ax: values}
    if cycles:
        panels[_panel_below(who, ax, "momentum")] = momenta
    for panel, curves in panels.items():
        for index, label in enumerate(schedules):
            if label in curves:
                steps_shown, values_shown, knots = curves[label]
                style = {**style_of(index), "markevery": knots, "label": wrapped_labels[label]}
                panel.plot(steps_shown, values_shown, **style)
        panel.yaxis.set_major_formatter("{x:.6g}")
        panel.margins(x=0.01)
        panel.grid(alpha=0.25, linewidth=0.6)
    panel.set_xlabel("optimizer updates done")
    panel.xaxis.set_major_formatter("{x:,.10g}")
    ax.legend(
        loc="lower left", bbox_to_anchor=(-0.01, 1), frameon=False, borderaxespad=0, fontsize=9
    )
    return ax


def _sampled(
    who: str, label: str, schedule: Schedule, last: int
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Return steps, the values there, and the indices of the knots; values must be finite."""
    knots = [knot for knot in getattr(schedule, "knots", (0,)) if knot <= last]
    evenly_spaced = np.linspace(0, last, min(last, SAMPLES) + 1).round()
    # The steps just before knots make a jump a vertical line.
    before = [np.ceil(knot) - 1 for knot in knots if knot > 0]
    steps = np.unique(np.concatenate([evenly_spaced, knots, before]))
    is_integer = steps == steps.round()
    values = np.empty(len(steps))
    evaluate = jax.jit(jax.vmap(lambda step: jnp.asarray(schedule(step), float)))
    values[is_integer] = evaluate(jnp.asarray(steps[is_integer], jnp.int32))
    values[~is_integer] = [schedule(step) for step in steps[~is_integer]]
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        where = f"{values[bad[0]]} at step {steps[bad[0]]:g} of {label}"
        _checks.fail(who, "every value must be finite", where)
    return steps, values, np.searchsorted(steps, knots).tolist()


def _panel_below(who: str, ax: "Axes", label: str) -> "Axes":
    """Give the lower third of the space of `ax` to a new panel with the same horizontal axis."""
    spec = ax.get_subplotspec()
    if spec is None:
        _checks.fail(
            who,
            "ax must be a subplot, which can make room for the momentum",
            "axes placed by hand",
            "use figure.subplots(), or draw cycle.learning_rate and cycle.momentum separately",
        )
    upper, lower = spec.subgridspec(2, 1, height_ratios=(2, 1))
    ax.set_subplotspec(upper)
    ax.tick_params(labelbottom=False)
    below = ax.figure.add_subplot(lower, sharex=ax, ylabel=label)
    below.spines[["top", "right"]].set_visible(False)
    return below
