"""Run the checks on anybody's transformation."""

import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from optlab import _checks, hyperparams
from optlab.registry import Row
from optlab.registry._row import SHAPES, of_descent, of_direction
from optlab.rules._state import is_rule_state
from optlab.testing._check import CHECKS, Check


@dataclass(frozen=True)
class Outcome:
    """What one check said of a transformation.

    Attributes:
        check: the check.
        status: "passed", "failed", or "exempt".
        message: of a failure what happened, of an exemption its reason.
    """

    check: Check
    status: Literal["passed", "failed", "exempt"]
    message: str = ""


@dataclass(frozen=True)
class Report:
    """What all checks said of a transformation; `print` shows it.

    Attributes:
        name: of the transformation.
        outcomes: one for each check that applies.
    """

    name: str
    outcomes: tuple[Outcome, ...]

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The outcomes of the checks that failed."""
        return tuple(outcome for outcome in self.outcomes if outcome.status == "failed")

    def __str__(self) -> str:
        """Return one line for each check, and the meaning and the remedy of each failure."""
        counts = {
            status: sum(outcome.status == status for outcome in self.outcomes)
            for status in ("passed", "failed", "exempt")
        }
        lines = [
            f"{self.name}: " + ", ".join(f"{count} {status}" for status, count in counts.items())
        ]
        for outcome in self.outcomes:
            if outcome.status == "exempt":
                lines.append(f"  exempt  {outcome.check.name}: {outcome.message}")
            if outcome.status == "failed":
                lines.append(f"  failed  {outcome.check.name}")
                for label, text in (
                    ("It means: ", outcome.check.meaning),
                    ("To mend it: ", outcome.check.remedy),
                    ("It said: ", outcome.message),
                ):
                    lines.append(
                        textwrap.fill(
                            label + text,
                            96,
                            initial_indent=" " * 10,
                            subsequent_indent=" " * 12,
                        )
                    )
        return "\n".join(lines)


def check_transformation(
    transformation: optax.GradientTransformation | Callable[..., optax.GradientTransformation],
    *,
    name: str | None = None,
    reference: Callable[..., Any] | None = None,
    samples: Sequence[Mapping[str, Any]] = ({},),
    hyperparams: Mapping[str, tuple[float, float]] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    rtol: float = 2e-6,
    squares: bool = False,
    exempt: Mapping[str, str] | None = None,
    only: Sequence[str] | None = None,
    on_failure: Literal["raise", "report"] = "raise",
) -> Report:
    """Check a transformation of optlab, of Optax or of your own.

    Each check has a name, a sentence that says what a failure means, and what usually mends it.
    Checks that need a reference, hyperparameters or two devices run if you supply them.

    Args:
        transformation: the transformation, or the function that makes it from its arguments.
        name: what the report calls it; by default the function's name.
        reference: the arithmetic of the direction in NumPy float64 for one array. Where a bias
            correction has βᵗ, it takes the product of the values that β has had. Its form is
            (gradient, state, t, **arguments) → (update, state), with the state {} before the first
            update and t from 1. An argument `learning_rate` that it does not take makes it the
            direction of an optimizer, −α(u + λθ), with λ the argument `weight_decay`.
        samples: arguments of the function, so that together they reach every branch.
        hyperparams: for arguments that may be scheduled, two valid values each; by default those
            hyperparameters of a lifted rule that are arguments of the function.
        shapes: names and shapes of the parameters to check on; by default a scalar and a (4, 3).
        rtol: the largest difference to the reference in float32, relative to a leaf's largest
            update.
        squares: True for a rule that squares gradients: the reference then receives them clipped at
            ±2⁶³.
        exempt: checks that do not hold, with the reason.
        only: names of the checks to run; by default all.
        on_failure: "raise" raises an AssertionError that holds the report; "report" returns it.

    Returns:
        The report.

    Raises:
        AssertionError: a check failed.
        ValueError: a name is not that of a check.

    Example:
        >>> import optlab
        >>> report = check_transformation(optlab.adam(1e-3), only=["scan_equals_loop"])
        >>> print(report)
        transformation: 1 passed, 0 failed, 0 exempt
    """
    who = "check_transformation"
    for check in (*(exempt or {}), *(only or ())):
        if check not in CHECKS:
            _checks.fail(who, f"checks must be among {', '.join(CHECKS)}", repr(check))
    if on_failure not in ("raise", "report"):
        _checks.fail(who, "on_failure must be 'raise' or 'report'", f"on_failure={on_failure!r}")
    row = _row(transformation, name, samples, hyperparams, shapes or SHAPES)
    report = run_checks(
        replace(
            row,
            reference=_tree_reference(row, reference),
            rtol=rtol,
            squares=squares,
            exempt=exempt or {},
        ),
        only,
    )
    if report.failures and on_failure == "raise":
        raise AssertionError(str(report))
    return report


def run_checks(row: Row, only: Sequence[str] | None = None) -> Report:
    """Return what the checks that apply say of a row."""
    outcomes = []
    for check in CHECKS.values():
        if (only is not None and check.name not in only) or not check.applies(row):
            continue
        if check.name in row.exempt:
            outcomes.append(Outcome(check, "exempt", row.exempt[check.name]))
            continue
        try:
            check(row)
        except Exception as error:  # whatever a foreign transformation raises is its answer
            text = str(error) or type(error).__name__
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            outcomes.append(Outcome(check, "failed", kind + " ".join(text.split())[:400]))
        else:
            outcomes.append(Outcome(check, "passed"))
    return Report(row.name, tuple(outcomes))


def _row(
    transformation: Any,
    name: str | None,
    samples: Sequence[Mapping[str, Any]],
    values: Mapping[str, tuple[float, float]] | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> Row:
    """Return a row of a transformation, with what can be read off its first state and update."""
    if isinstance(transformation, tuple) and hasattr(transformation, "update"):
        default, arguments = "transformation", set()

        def constructor(**options: Any) -> Any:
            return transformation

    elif callable(transformation):
        constructor = transformation
        default = getattr(transformation, "__name__", "transformation")
        arguments = set(inspect.signature(transformation).parameters)
    else:
        _checks.fail(
            "check_transformation",
            "transformation must be an optax.GradientTransformation or a function that makes one",
            repr(transformation),
        )
    row = Row(
        name=name or default,
        summary="",
        constructor=constructor,
        samples=tuple(samples),
        shapes=shapes,
    )
    tx = row.make(**row.arguments())
    params = {key: jnp.ones(shape) for key, shape in shapes.items()}
    state = tx.init(params)
    nodes = jax.tree.leaves(state, is_leaf=is_rule_state)
    own = bool(nodes) and all(is_rule_state(node) for node in nodes)
    if values is None:
        in_force = hyperparams(state) if own else {}
        values = {
            key: (float(value), _another(float(value)))
            for key, value in in_force.items()
            if key in arguments
        }
    return replace(row, own=own, hyperparams=values, needs_params=_needs_params(tx, params, state))


def _another(value: float) -> float:
    """Return a second valid value of a hyperparameter that is a size or a decay rate."""
    return value / 2 if value else 0.1


def _needs_params(tx: optax.GradientTransformation, params: Any, state: Any) -> bool:
    """Whether an update fails without parameters."""
    try:
        tx.update(params, state)
    except Exception:  # each library has its own error
        return True
    return False


def _tree_reference(row: Row, reference: Callable[..., Any] | None) -> Any:
    """Return the reference on trees of one that is written for one array."""
    if reference is None:
        return None
    takes_rate = "learning_rate" in inspect.signature(reference).parameters
    return of_direction(reference) if takes_rate or not row.is_optimizer else of_descent(reference)
