"""The checks of `optlab.testing` over the rows of the registry, and the checks themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optlab
from optlab import registry
from optlab.testing import CHECKS, check_transformation

ROWS = {**registry.OPTIMIZERS, **registry.TRANSFORMATIONS, **registry.WRAPPERS}
OF_DIRECTIONS = ("matches_reference", "bad_hyperparameters_are_refused")
"""A direction is half of its optimizer, on which all other checks run."""

ELSEWHERE = {
    "a_donated_step_needs_no_memory_beside_parameters_and_state",
    "a_million_updates_keep_to_the_reference",
    "flattening_changes_nothing",
    "tree_map_params_finds_every_slot",
}
"""Checks of rows that are tests of their own."""


OF_LONG_COMPILATION = {"muon", "shampoo", "soap"}
QUICK = (*OF_DIRECTIONS, "an_infinity_is_not_hidden")
"""The checks of rules whose products and decompositions compile for long; all others are slow."""

IN_DOUBLE = "matches_reference_in_double"
"""Compiles every row once more, and is held to the reference that the same check in float32 is."""


def cases():
    """Rule checks on all rows; lift checks on exemplars and wrappers, on the others when slow."""
    for row in (*ROWS.values(), *registry.DIRECTIONS.values()):
        for check in CHECKS.values():
            if row.name in registry.DIRECTIONS and check.name not in OF_DIRECTIONS:
                continue
            if check.name in row.exempt or not check.applies(row):
                continue
            fast = check.about == "rule" or row.exemplar or row.wraps is not None
            if row.name in OF_LONG_COMPILATION:
                fast = check.name in QUICK
            slow = [pytest.mark.slow, pytest.mark.other_rows]
            if row.name in registry.DIRECTIONS and check.name == "matches_reference":
                # The optimizer, which runs it, is held to the same reference.
                fast, slow = False, [pytest.mark.slow]
            if check.name == IN_DOUBLE:
                fast, slow = False, [pytest.mark.slow]
            if row.name.removeprefix("scale_by_") in {"shampoo", "soap"} and not fast:
                slow = [pytest.mark.slow, pytest.mark.other_rows]
            marks = [] if fast else slow
            yield pytest.param(row, check, id=f"{row.name}-{check.name}", marks=marks)


@pytest.mark.parametrize(("row", "check"), list(cases()))
def test_row(row, check):
    check(row)


def test_exemptions_name_checks():
    assert all(set(row.exempt) <= set(CHECKS) | ELSEWHERE for row in ROWS.values())


def test_every_check_says_what_a_failure_means_and_what_mends_it():
    for check in CHECKS.values():
        assert check.meaning.endswith("."), check.name
        assert check.remedy.endswith("."), check.name


# The checks themselves


def forgets_its_count():
    """A transformation whose second state has another type than its first."""
    return optax.GradientTransformation(
        lambda params: jnp.zeros((), jnp.int32),
        lambda g, state, params=None: (g, state + 1.0),
    )


def hides_infinities():
    return optax.stateless(lambda g, p: jax.tree.map(lambda x: jnp.clip(x, -1, 1), g))


def test_a_foreign_transformation_is_reported_on():
    # Optax computes in the gradients' own types.
    report = check_transformation(optax.sgd(0.1), name="optax.sgd", on_failure="report")
    assert {failure.check.name for failure in report.failures} == {
        "low_precision_keeps_types_and_computes_in_float32",
        "narrow_gradients_of_float32_parameters_give_float32_updates",
    }, str(report)
    assert str(report).startswith("optax.sgd: ")


def test_a_failure_raises_with_its_meaning_and_remedy():
    with pytest.raises(AssertionError, match=r"(?s)scan_equals_loop.*It means: .*To mend it: "):
        check_transformation(forgets_its_count, only=["scan_equals_loop"])


def test_an_exemption_is_shown_with_its_reason():
    report = check_transformation(
        hides_infinities,
        only=["an_infinity_is_not_hidden"],
        exempt={"an_infinity_is_not_hidden": "it bounds"},
    )
    assert "exempt  an_infinity_is_not_hidden: it bounds" in str(report)
    with pytest.raises(AssertionError, match="an_infinity_is_not_hidden"):
        check_transformation(hides_infinities, only=["an_infinity_is_not_hidden"])


def test_a_reference_of_the_direction_serves_for_the_optimizer():
    def reference(g, state, t, *, momentum=0.9):
        v = momentum * state.get("v", 0.0) + g
        return v, {"v": v}

    def off_by_a_little(g, state, t, **options):
        update, state = reference(g, state, t, **options)
        return update * (1 + 1e-5), state

    arguments = {
        "samples": ({"learning_rate": 0.1, "momentum": 0.9},),
        "hyperparams": {"learning_rate": (0.1, 0.2), "momentum": (0.9, 0.5)},
        "only": ["matches_reference", "follows_schedules"],
    }
    report = check_transformation(optlab.sgd, reference=reference, **arguments)
    assert [outcome.status for outcome in report.outcomes] == ["passed", "passed"]
    with pytest.raises(AssertionError, match="matches_reference"):
        check_transformation(optlab.sgd, reference=off_by_a_little, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"only": ["no_such_check"]}, "checks must be among"),
        ({"exempt": {"no_such_check": "reason"}}, "checks must be among"),
        ({"on_failure": "ignore"}, "on_failure must be 'raise' or 'report'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"check_transformation: {message}"):
        check_transformation(optlab.sgd(0.1), **arguments)


def test_something_else_than_a_transformation_is_refused():
    with pytest.raises(ValueError, match="transformation must be an optax"):
        check_transformation(np.ones(3))


@pytest.mark.parametrize("shapes", [{"w": (4, 3)}, {"v": (3, 3), "w": (3, 3)}])
def test_leaves_of_one_shape_are_told_apart(shapes):
    names = ["a_nan_is_not_hidden_and_does_not_spread", "a_none_gradient_leaves_its_slots_alone"]
    names += ["a_foreign_state_is_an_error", "another_structure_is_an_error"]
    report = check_transformation(optlab.adam(0.1), shapes=shapes, only=names)
    assert len(report.outcomes) == len(names)
