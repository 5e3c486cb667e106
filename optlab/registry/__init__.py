"""One row for each rule, transformation and schedule: what it is, its reference, how to check it.

The command line looks names up here, and the checks in `tests/` run over all rows. To add a rule:
its file, its function in `optlab.reference`, and its row.
"""

from optlab.registry._optimizers import OPTIMIZERS
from optlab.registry._row import Row, ScheduleRow
from optlab.registry._schedules import SCHEDULES
from optlab.registry._transformations import TRANSFORMATIONS
from optlab.registry._wrappers import WRAPPERS

__all__ = ["OPTIMIZERS", "SCHEDULES", "TRANSFORMATIONS", "WRAPPERS", "Row", "ScheduleRow"]
