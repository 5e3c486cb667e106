"""Checks for transformations: ours, Optax's, and anybody's own.

    optlab.testing.check_transformation(optax.adam(1e-3))

runs every check that applies and says of each failure what it means and what usually mends it. The
same checks run over the rows of `optlab.registry`.
"""

from optlab.testing import _lift_checks, _rule_checks  # noqa: F401  (they register the checks)
from optlab.testing._check import CHECKS, Check
from optlab.testing._run import Outcome, Report, check_transformation, run_checks

__all__ = ["CHECKS", "Check", "Outcome", "Report", "check_transformation", "run_checks"]
