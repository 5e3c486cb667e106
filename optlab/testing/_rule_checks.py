"""The checks of a rule: numbers against its reference, extreme inputs, hyperparameters."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from optlab import hyperparams, replace_hyperparams
from optlab.registry import Row
from optlab.rules._state import is_rule_state
from optlab.testing import _runs
from optlab.testing._check import (
    begins,
    check,
    refuses,
    require,
    require_close,
    require_finite,
    require_identical,
)
from optlab.testing._extremes import (
    HUGE,
    SCENARIOS,
    measured,
    require_right,
)
from optlab.testing._runs import FEW_ROUNDINGS, gradient, gradients, make, parameters


def has_reference(row: Row) -> bool:
    """Whether the row has a float64 reference."""
    return row.reference is not None


def has_hyperparams(row: Row) -> bool:
    """Whether hyperparameters can be given to the row."""
    return bool(row.hyperparams)


def _require_reference(row: Row, outcomes, rtol: float) -> None:
    """Compare each leaf, relative to its largest outcome.

    A sum that passes through zero keeps the roundings of its size before.
    """
    for sample, (outcome, options) in enumerate(zip(outcomes, row.samples, strict=True)):
        wanted = _runs.wanted_updates(row, sample)
        for leaf, result in enumerate(jax.tree.leaves(outcome)):
            largest = max(np.abs(want[leaf]).max() for want in wanted.values())
            for t, want in wanted.items():
                np.testing.assert_allclose(
                    result[t - 1],
                    want[leaf],
                    rtol=0,
                    atol=rtol * largest,
                    err_msg=f"update {t} of the sample {dict(options)}",
                )


@check("rule", has_reference)
def matches_reference(row: Row) -> None:
    """The float32 updates leave the float64 reference within 1000 updates. Mend: compare the
    formula with the paper; where float32 itself is the limit, set the row's rtol with the reason.
    """
    _require_reference(row, _runs.single_runs(row)[0], row.rtol)


@check("rule", has_reference)
def matches_reference_in_double(row: Row) -> None:
    """The float64 updates leave the reference, so that formula and reference differ. Mend: compare
    both with the paper, term by term; look for a constant or a cast that is float32.
    """
    grads, params = _runs.double(gradients(row)), _runs.double(parameters(row))
    with jax.enable_x64(True):
        outcomes, _ = _runs.run_samples(row, grads, params)
    _require_reference(row, outcomes, rtol=1e-12 * max(1, row.rtol / 2e-6))


@check("rule", lambda row: has_reference(row) and has_hyperparams(row))
def follows_schedules(row: Row) -> None:
    """A scheduled hyperparameter acts at another update, or otherwise, than in the reference. Mend:
    evaluate schedules at the count before the update, and let the value reach the leaf through
    `once`, never through a Python constant.
    """
    grads = {k: np.asarray(x[:9], np.float64) for k, x in gradients(row).items()}
    params = _runs.double(parameters(row))
    steps = range(1, 10)
    changes = {name: 2 + i for i, name in enumerate(row.hyperparams)}  # one after the other

    def value(name, step):
        first, second = row.hyperparams[name]
        return second if step >= changes[name] else first

    with jax.enable_x64(True):
        scheduled = {
            name: lambda step, at=changes[name], v=values: jnp.where(step >= at, v[1], v[0])
            for name, values in row.hyperparams.items()
        }
        run = jax.jit(lambda g, p: _runs.trajectory(make(row, **scheduled), g, p, row.outcome))
        outcomes, state = run(grads, params)
        wanted = _runs.reference_trajectory(
            row,
            {**row.fixed, **row.arguments()},
            params,
            grads,
            steps,
            values=lambda t: {name: value(name, t - 1) for name in row.hyperparams},
        )
        for t in steps:
            for result, want in zip(jax.tree.leaves(outcomes), wanted[t], strict=True):
                np.testing.assert_allclose(
                    result[t - 1], want, rtol=0, atol=1e-12 * np.abs(want).max()
                )
        for name in row.hyperparams:
            require(_value(state, name) == value(name, 8), f"{name} is {_value(state, name)}")


def reaches_extremes(row: Row) -> bool:
    """Whether the reference covers gradients at the ends of float32; wrappers answer otherwise."""
    return row.reference is not None and row.wraps is None


@check("rule", reaches_extremes)
def extreme_gradients_match_reference(row: Row) -> None:
    """Gradients from 1e-40 to 1.5e38 give other updates than in float64. Mend: use
    `bounded_square` and `visibly_bounded` for squares, `saturated` for sums, and keep scalars whose
    product leaves float32's range apart.
    """
    for sample in range(len(row.samples)):
        for scenario in SCENARIOS:
            require_right(row, sample, scenario)


@check("rule", reaches_extremes)
def huge_gradients_again_and_again_match_reference(row: Row) -> None:
    """Six gradients in a row above 1e20 give other updates than in float64. Mend: bound what
    gathers squares, as `bounded_square` and `added` do.
    """
    for sample in range(len(row.samples)):
        for scenario in HUGE:
            require_right(row, sample, scenario)


@check("rule", lambda row: reaches_extremes(row) and row.needs_params)
def extreme_parameters_match_reference(row: Row) -> None:
    """Parameters from 1e-40 to 1.5e38 give other updates than in float64. Mend: as for extreme
    gradients.
    """
    for sample in range(len(row.samples)):
        for scenario in range(4):
            require_right(row, sample, scenario, measured(row, sample, extreme_parameters=True))


@check("rule")
def missing_parameters_are_an_error(row: Row) -> None:
    """An update without parameters fails obscurely, or differs though none are needed. Mend: set
    `needs_params` where the arithmetic reads the parameter, and only there.
    """
    tx = make(row)
    state = tx.init(parameters(row))
    if row.needs_params:
        if row.own:
            with refuses("update must be given the parameters, got params=None", "no params"):
                tx.update(gradient(row), state)
        return
    updates = tx.update(gradient(row), state)[0]
    require_close(updates, tx.update(gradient(row), state, parameters(row))[0], 0.0)


@check("rule")
def complex_equals_two_reals(row: Row) -> None:
    """A complex leaf is not treated as its real and its imaginary part. Mend: leave `complex` at
    "parts"; a rule that means the complex number exempts itself with that reason.
    """
    tx = make(row)

    def parts(tree):
        return {part: {k: getattr(x, part) for k, x in tree.items()} for part in ("real", "imag")}

    params = {
        k: (p + 2j * p[::-1] if p.ndim else p + 1j).astype(np.complex64)
        for k, p in parameters(row).items()
    }
    state, real_state = tx.init(params), tx.init(parts(params))
    updates, reals = params, parts(params)
    for i in range(3):
        g = {k: (x[i] + 1j * x[i + 1]).astype(np.complex64) for k, x in gradients(row).items()}
        updates, state = tx.update(g, state, params)
        reals, real_state = tx.update(parts(g), real_state, parts(params))
    require(all(u.dtype == np.complex64 for u in updates.values()), "the updates are not complex64")
    # A norm adds the same squares in another order.
    require_close(parts(updates), reals, FEW_ROUNDINGS)


@check("rule")
def low_precision_keeps_types_and_computes_in_float32(row: Row) -> None:
    """Updates of bfloat16 and float16 leaves are not those of float32 leaves, rounded once. Mend:
    keep slots at least float32 and round nothing before the end.
    """
    for dtype in (jnp.bfloat16, jnp.float16):
        params, g = (
            {k: jnp.asarray(x, dtype) for k, x in tree.items()}
            for tree in (parameters(row), gradient(row))
        )
        tx = make(row)
        updates, state = tx.update(g, tx.init(params), params)
        require(all(u.dtype == dtype for u in updates.values()), f"updates are not {dtype}")
        slots = [s for s in jax.tree.leaves(state) if jnp.issubdtype(s.dtype, jnp.inexact)]
        require(all(s.dtype == jnp.float32 for s in slots), "a slot is not float32")
        full = [{k: x.astype(jnp.float32) for k, x in tree.items()} for tree in (params, g)]
        exact, _ = tx.update(full[1], tx.init(full[0]), full[0])
        # One rounding, at the very end: half a unit in the last place, so the same after rounding.
        require_identical(updates, {k: u.astype(dtype) for k, u in exact.items()})


@check("rule")
def narrow_gradients_of_float32_parameters_give_float32_updates(row: Row) -> None:
    """Gradients in bfloat16 round the update of a float32 parameter. Mend: return updates in the
    wider type of the two.
    """
    g = {k: jnp.asarray(x, jnp.bfloat16) for k, x in gradient(row).items()}
    params = parameters(row)
    tx = make(row)
    updates, _ = tx.update(g, tx.init(params), params)
    require(all(u.dtype == jnp.float32 for u in updates.values()), "updates are not float32")


@check("rule")
def zero_gradient_is_a_no_op(row: Row) -> None:
    """Parameters move though all gradients have been zero. Mend: look for 0/0 and for a constant in
    the numerator; decay moves parameters by design, which is a reason for an exemption.
    """
    for dtype in (jnp.float32, jnp.float16):
        params = {k: jnp.asarray(p, dtype) for k, p in parameters(row).items()}
        zeros = jax.tree.map(jnp.zeros_like, params)
        tx = make(row)
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(zeros, state, params)
            require_close(updates, zeros, 0.0)


@check("rule")
def tiny_gradients_stay_finite(row: Row) -> None:
    """Gradients whose squares underflow give NaN or infinity. Mend: add ε outside the root, or
    compare before dividing.
    """
    tx = _runs.compiled(row)
    params = parameters(row)
    for size in (1e-20, 1e-30, 1e-40):  # squares that underflow, and a denormal
        g = {k: np.full(p.shape, size, np.float32) for k, p in params.items()}
        require_finite(tx.update(g, tx.init(params), params)[0])


@check("rule")
def huge_gradients_stay_finite_and_are_forgotten(row: Row) -> None:
    """A gradient whose square overflows gives NaN or infinity, then or later. Mend: use
    `bounded_square` and `visibly_bounded` for squares, `saturated` for sums.
    """
    tx = _runs.compiled(row)
    params = parameters(row)
    for size in (1e20, 1e30, 3e38):
        huge = {k: np.full(p.shape, size, np.float32) for k, p in params.items()}
        state = tx.init(params)
        for g in (huge, gradient(row), gradient(row)):
            updates, state = tx.update(g, state, params)
            require_finite(updates)


@check("rule")
def an_infinity_is_not_hidden(row: Row) -> None:
    """An infinite gradient gives a finite update, so that nobody sees that a run has broken. Mend:
    pass the gradient through `visibly_bounded`, whose result is NaN there.
    """
    key = _runs.smallest_key(row)
    g = {**gradient(row), key: np.full(row.shapes[key], np.inf, np.float32)}
    tx = _runs.compiled(row)
    updates, _ = tx.update(g, tx.init(parameters(row)), parameters(row))
    require(not np.isfinite(np.asarray(updates[key])).any(), f"the update is {updates[key]}")


@check("rule")
def a_nan_is_not_hidden_and_does_not_spread(row: Row) -> None:
    """A NaN in one leaf is lost, or reaches another leaf. Mend: compare with `jnp.where` on the
    leaf's own numbers; a rule that joins all leaves must decide what a NaN means.
    """
    key, other = _runs.smallest_key(row), _runs.largest_key(row)
    g = {**gradient(row), key: np.full(row.shapes[key], np.nan, np.float32)}
    tx = _runs.compiled(row)
    updates, _ = tx.update(g, tx.init(parameters(row)), parameters(row))
    require(np.isnan(np.asarray(updates[key])).all(), f"the update is {updates[key]}")
    if other != key:
        require_finite(updates[other])


@check("rule")
def mirrored_inputs_give_mirrored_updates(row: Row) -> None:
    """With all signs changed the update is not the negative one, bit for bit. Mend: use
    symmetric operations; a random or a one-sided rule exempts itself.
    """

    def mirror(tree):
        return jax.tree.map(lambda x: -x, tree)

    updates, _ = _runs.first_three(row)
    mirrored, _ = _runs.three_updates(
        row, _runs.compiled(row), mirror(parameters(row)), mirror(gradients(row))
    )
    require_identical(mirrored, mirror(updates))


@check("rule")
def differentiates_at_zero_gradients(row: Row) -> None:
    """The derivative of an update with respect to its gradient is not finite at zero, which breaks
    meta-learning. Mend: use `rules.root` in place of `jnp.sqrt`, and divide by what `jnp.where`
    has made different from 0.
    """
    tx = make(row)
    params = jax.tree.map(jnp.asarray, parameters(row))
    state = jax.tree.map(jnp.asarray, tx.init(params))

    def total(g):
        updates, _ = tx.update(g, state, params)
        return sum(jnp.sum(u) for u in jax.tree.leaves(updates))

    slopes = jax.jit(jax.grad(total))(jax.tree.map(jnp.zeros_like, params))
    require_finite(slopes, "the derivative")


def _value(state, name):
    """Return the only value of a hyperparameter in a state."""
    return hyperparams(state)[name]


@check("rule", lambda row: row.own)
def bad_hyperparameters_are_refused(row: Row) -> None:
    """A value outside its domain is accepted, or its error does not say what is wrong. Mend:
    declare the domain with `number` or `decay`, and check options with `rules.check_flag`.
    """
    who = begins(row)
    for options, message in row.errors:
        with refuses(who + re.escape(message), f"{options}"):
            make(row, **options)
    declared = {
        declaration.name: declaration.domain
        for node in jax.tree.leaves(make(row).init(parameters(row)), is_leaf=is_rule_state)
        if is_rule_state(node)
        for declaration in node.declarations
    }
    if row.wraps is not None:
        return
    for name in row.hyperparams:
        if name not in declared:
            continue
        domain = declared[name]
        for value in (-0.5, 1.0, 1.5, float("nan"), float("inf")):
            if domain.contains(value):
                make(row, **{name: value})
                continue
            message = f"{name} must be {domain.description}, got {name}={value}"
            with refuses(f"{who}{re.escape(message)}$", f"{name}={value}"):
                make(row, **{name: value})
            with refuses("replace_hyperparams: ", f"replacing {name} by {value}"):
                state = make(row).init(parameters(row))
                replace_hyperparams(state, **{name: value})


@check("rule", has_hyperparams)
def array_and_schedule_equal_a_float(row: Row) -> None:
    """A hyperparameter acts otherwise, or makes another state, as an array or a schedule than as a
    float. Mend: declare it with `number` or `decay` and read it from `h` alone.
    """
    for name, (value, _) in row.hyperparams.items():
        # The numbers are equal but for 1 − β, which only a float has exactly.
        exact = float(np.float32(value)) if value < 0.5 else 1 - 2.0**-7
        updates, state = _runs.three_updates(row, make(row, **{name: exact}))
        for other in (jnp.array(exact), lambda step, v=exact: jnp.float32(v)):
            others, other_state = _runs.three_updates(row, make(row, **{name: other}))
            require_close(others, updates, FEW_ROUNDINGS)
            require(jax.tree.structure(other_state) == jax.tree.structure(state), "other structure")
            require(_value(other_state, name) == _value(state, name), "other value")
            types = [x.dtype for x in jax.tree.leaves(state)]
            require([x.dtype for x in jax.tree.leaves(other_state)] == types, "other types")


@check("rule", has_hyperparams)
def the_first_update_uses_step_zero(row: Row) -> None:
    """A schedule is evaluated at another step than the number of updates before. Mend: let the
    lift evaluate schedules.
    """
    for name, (first, second) in row.hyperparams.items():
        tx = make(row, **{name: lambda step, a=first, b=second: jnp.where(step == 0, a, b)})
        state = tx.init(parameters(row))
        for value in (first, first, second):
            require(_value(state, name) == np.float32(value), f"{name} is not {value}")
            _, state = tx.update(gradient(row), state, parameters(row))


@check("rule", has_hyperparams)
def a_value_replaced_in_the_state_takes_effect(row: Row) -> None:
    """A value replaced in the state does not act as one given to the constructor. Mend: read
    hyperparameters from `h` alone, and carry nothing over that was computed from them.
    """
    with jax.enable_x64(True):  # to see every digit
        params = _runs.double(parameters(row))
        # Two updates: the first one of an average that is freed of its bias tells nothing of β.
        grads = [_runs.double(_runs.at(gradients(row), i)) for i in range(2)]
        for name, (first, second) in row.hyperparams.items():
            tx, other = make(row, **{name: first}), make(row, **{name: second})
            state = replace_hyperparams(tx.init(params), **{name: second})
            other_state = other.init(params)
            for g in grads:
                updates, state = tx.update(g, state, params)
                other_updates, other_state = other.update(g, other_state, params)
                wanted = row.outcome(other_updates, other_state)
                require_close(row.outcome(updates, state), wanted, 1e-12)
                require(_value(state, name) == second, "the value is not in the state")


@check("rule", has_hyperparams)
def a_changed_argument_takes_effect(row: Row) -> None:
    """A transformation made anew with another value, as by a sweep, goes on with the old one. Mend:
    let the lift settle hyperparameters.
    """
    for name, (first, second) in row.hyperparams.items():
        tx = make(row, **{name: first})
        _, state = tx.update(gradient(row), tx.init(parameters(row)), parameters(row))
        _, state = make(row, **{name: second}).update(gradient(row), state, parameters(row))
        require(_value(state, name) == np.float32(second), f"{name} is {_value(state, name)}")
