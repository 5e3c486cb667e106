"""One row for each rule, transformation and schedule: what it is, its reference, how to check it.

The command line looks names up here, and the checks of `optlab.testing` run over all rows. To add
a rule: its file, its function in `optlab.reference`, its row, and its name in `optlab/__init__.py`.
"""

from collections.abc import Mapping

from optlab.registry._optimizers import OPTIMIZERS, PASSED_ON
from optlab.registry._row import Row, ScheduleRow
from optlab.registry._schedules import SCHEDULES
from optlab.registry._transformations import TRANSFORMATIONS
from optlab.registry._wrappers import WRAPPERS

DIRECTIONS: Mapping[str, Row] = {
    direction.name: direction
    for row in OPTIMIZERS.values()
    if (direction := row.of_direction()) is not None
}
"""The directions of the optimizers, made of the optimizers' rows."""

BY_NAME: Mapping[str, Row] = {**OPTIMIZERS, **PASSED_ON}
"""All optimizers, as the command line looks them up."""

__all__ = [
    "BY_NAME",
    "DIRECTIONS",
    "OPTIMIZERS",
    "PASSED_ON",
    "SCHEDULES",
    "TRANSFORMATIONS",
    "WRAPPERS",
    "Row",
    "ScheduleRow",
]
