"""`plot_ensemble`: how calibrated an ensemble is, and what each member adds to it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from optlab._extras import needs_extra
from optlab._types import ArrayLike
from optlab.plots._common import DIM, new_axes, style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from optlab.lab import EnsembleReport, Reliability

LEAST_SHARE = 0.005
"""Bins with a smaller share of the examples are not drawn; their accuracy is mostly chance."""

LARGEST_MARKER = 160
"""The area, in square points, of the marker of a bin that holds all examples."""


def plot_reliability(diagrams: "Mapping[str, Reliability]", *, ax: "Axes | None" = None) -> "Axes":
    """Draw accuracy against confidence; calibrated predictions lie on the diagonal.

    A point is a bin of `reliability`, and its area grows with the share of the examples in it. Bins
    with less than half a percent of them are left out. A model that is too sure of itself lies
    below the diagonal.

    Args:
        diagrams: label → what `reliability` returns.
        ax: the axes to draw on; None for a new figure.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
    """
    ax = new_axes("plot_reliability") if ax is None else ax
    ax.plot([0, 1], [0, 1], color=DIM, linewidth=1, zorder=0)
    for index, (label, diagram) in enumerate(diagrams.items()):
        confidence, accuracy, share = map(np.asarray, diagram)
        drawn = share >= LEAST_SHARE
        style = style_of(index)
        marker, color = style.pop("marker"), style["color"]
        del style["markersize"]
        ax.plot(confidence[drawn], accuracy[drawn], **style, zorder=1)
        area = LARGEST_MARKER * np.sqrt(share[drawn])
        ax.scatter(
            confidence[drawn], accuracy[drawn], area, color=color, marker=marker, label=label
        )
    ax.set_xlabel("confidence: probability of the most probable class")
    ax.set_ylabel("accuracy")
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.legend(loc="best", frameon=False)
    return ax


def plot_gain(
    gains: Mapping[str, ArrayLike], *, ylabel: str = "score", ax: "Axes | None" = None
) -> "Axes":
    """Draw a score against the number of members.

    Args:
        gains: label → (members,) float, the score with 1, 2, … members.
        ylabel: the name of the score.
        ax: the axes to draw on; None for a new figure.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
    """
    ax = new_axes("plot_gain") if ax is None else ax
    for index, (label, values) in enumerate(gains.items()):
        values = np.asarray(values)
        ax.plot(np.arange(1, len(values) + 1), values, **style_of(index), label=label)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("members")
    ax.set_ylabel(ylabel)
    ax.grid(alpha=0.25, linewidth=0.6)
    ax.legend(loc="best", frameon=False)
    return ax


def plot_ensemble(report: "EnsembleReport") -> "Figure":
    """Draw the reliability of members and ensemble, and error and NLL against the members.

    Args:
        report: what `Ensemble.report` returns.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
    """
    with needs_extra("plot_ensemble"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.6), dpi=150, layout="constrained")
    diagram, error, nll = figure.subplots(1, 3)
    names = {"probability": "probability mean", "logit": "logit mean", "members": "members"}
    plot_reliability({names[name]: one for name, one in report.diagrams.items()}, ax=diagram)
    for ax, score, ylabel in ((error, "error", "error"), (nll, "nll", "negative log-likelihood")):
        gains = {names[how]: getattr(gain, score) for how, gain in report.gain.items()}
        plot_gain(gains, ylabel=ylabel, ax=ax)
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{report.task}, {len(report.labels)} models, {report.split} split")
    return figure
