"""Results of the lab as Matplotlib axes. Matplotlib is imported only when a function is called.

Each function draws on the given axes, or on those of a new figure outside pyplot's global state,
and returns the axes: `plot_curves(comparison).figure.savefig("curves.png")`. Functions that need
several panels return the figure.
"""

from optlab.plots._bench import plot_areas, plot_bench, plot_costs, plot_profile
from optlab.plots._comparison import (
    plot_comparison,
    plot_curves,
    plot_path_panels,
    plot_paths,
    plot_sensitivity,
)
from optlab.plots._coordinates import plot_coordinate_check
from optlab.plots._ensemble import plot_ensemble, plot_gain, plot_reliability
from optlab.plots._history import plot_history
from optlab.plots._parallel import plot_parallel
from optlab.plots._range_test import plot_range_test
from optlab.plots._schedules import plot_schedules
from optlab.plots._sweep import plot_hyperparameter, plot_sweep
from optlab.plots._trials import plot_importances, plot_trials

__all__ = [
    "plot_areas",
    "plot_bench",
    "plot_comparison",
    "plot_coordinate_check",
    "plot_costs",
    "plot_curves",
    "plot_ensemble",
    "plot_gain",
    "plot_history",
    "plot_hyperparameter",
    "plot_importances",
    "plot_parallel",
    "plot_path_panels",
    "plot_paths",
    "plot_profile",
    "plot_range_test",
    "plot_reliability",
    "plot_schedules",
    "plot_sensitivity",
    "plot_sweep",
    "plot_trials",
]
