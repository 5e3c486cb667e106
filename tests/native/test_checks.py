"""The checks of `optlab.testing` on the registry's rows, with their updates computed in loops."""

import dataclasses
import functools

import optax
import pytest

from optlab import registry
from optlab.native import _step
from optlab.testing import CHECKS

pytestmark = pytest.mark.slow

ROWS = {**registry.OPTIMIZERS, **registry.TRANSFORMATIONS, **registry.WRAPPERS}
MOSTLY_XLA = {"muon", "shampoo", "soap"}
"""Rules of matrices, whose products and decompositions XLA computes; they compile for long."""

OF_ALL = ("matches_reference", "an_infinity_is_not_hidden")
OF_EXEMPLARS = ("a_nan_is_not_hidden_and_does_not_spread", "extreme_gradients_match_reference")
OF_EXEMPLARS += ("matches_reference_in_double", "scan_equals_loop")


def in_loops(row):
    """Return a row whose transformation computes its update in loops."""

    @functools.wraps(row.constructor)  # whose signature says which arguments it takes
    def constructor(*args, **options):
        tx = optax.with_extra_args_support(row.constructor(*args, **options))

        def update(grads, state, params=None, **extra_args):
            return _step._with_loops(tx.update, grads, state, params, extra_args, donated=False)

        return optax.GradientTransformationExtraArgs(tx.init, update)

    return dataclasses.replace(row, constructor=constructor)


def cases():
    """The cheapest checks on all rows, more on exemplars."""
    for name, row in ROWS.items():
        for check in (*OF_ALL, *(OF_EXEMPLARS if row.exemplar else ())):
            if check not in row.exempt and CHECKS[check].applies(row) and name not in MOSTLY_XLA:
                yield pytest.param(name, check, id=f"{name}-{check}")


@pytest.fixture(scope="module")
def rows():
    """Rows in loops by name, made once, since checks of a row share what they compile."""
    return {name: in_loops(row) for name, row in ROWS.items()}


@pytest.mark.parametrize(("name", "check"), list(cases()))
def test_row_in_loops(name, check, rows):
    CHECKS[check](rows[name])
