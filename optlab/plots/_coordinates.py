"""`plot_coordinate_check`: how much activations change, over the widths of a model."""

from typing import TYPE_CHECKING

from optlab.plots._common import new_axes, style_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from optlab.mup import CoordinateCheck


def plot_coordinate_check(
    check: "CoordinateCheck", *, label: str = "", ax: "Axes | None" = None
) -> "Axes":
    """Draw how much each activation has changed at the last update, over the widths.

    Under μP the lines are level. The band around a line reaches from the least to the largest seed,
    and the legend has the slope of each line.

    Args:
        check: what `optlab.mup.coordinate_check` returns.
        label: the title; "" for none.
        ax: the axes to draw on; None for a new figure.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
    """
    ax = new_axes("plot_coordinate_check") if ax is None else ax
    last = check.changes[:, :, -1]
    for index, (name, slope) in enumerate(check.slopes.items()):
        style, own = style_of(index), last[..., index]
        ax.fill_between(check.widths, own.min(1), own.max(1), color=style["color"], alpha=0.15)
        text = f"{name}, slope {slope:.2f}"
        ax.plot(check.widths, own.mean(1), **style, label=text if slope == slope else name)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(check.widths, [str(width) for width in check.widths])
    ax.minorticks_off()
    ax.set_xlabel("width")
    ax.set_ylabel(f"mean absolute change after {check.changes.shape[2]} updates")
    ax.grid(alpha=0.25, linewidth=0.6)
    if label:
        ax.set_title(label, loc="left")
    ax.legend(loc="best", frameon=False)
    return ax
