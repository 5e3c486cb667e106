"""How many batches make one update, where gradients are accumulated.

Everywhere in the lab an update is a step of the parameters: `steps`, `eval_every`, schedules and
the rates of a range test count updates. An optimizer in `accumulate` or `optax.MultiSteps` takes a
window of several batches for each, and a run draws that many.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from optlab import _checks
from optlab._types import Array
from optlab.lab.training._loop import TrainState
from optlab.rules._state import is_rule_state
from optlab.wrappers import AccumulateState, SkipNonfiniteState

MOST = 2**16
"""The most batches that an update may take."""

_PLACES = {AccumulateState: "micro_step", optax.MultiStepsState: "mini_step"}
"""The states of what accumulates gradients, each with the field that counts within a window."""

_SKIPPED = {
    SkipNonfiniteState: "skipped",
    AccumulateState: "skipped",
    optax.ApplyIfFiniteState: "total_notfinite",
}
"""The states of what skips steps or batches, each with the field that counts them."""


def batches_per_update(tx: optax.GradientTransformation, run: TrainState) -> int:
    """Return the number of batches that an update takes, ≥ 1.

    It is 1 also where only some groups of parameters accumulate their gradients.

    Args:
        tx: the optimizer.
        run: a run of it before the first update; shapes suffice.

    Raises:
        ValueError: no window of gradients is full after 2¹⁶ batches.
    """
    if not _windows(run.opt_state) or _has_rates_outside(run.opt_state):
        return 1
    extra = optax.with_extra_args_support(tx)

    def count() -> Array:
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), run.params)
        zero = jnp.zeros((), float)

        def value_fn(params: Any) -> Array:
            del params
            return zero

        def body(carry: tuple[Any, Array]) -> tuple[Any, Array]:
            state, calls = carry
            options = {"value": zero, "grad": params, "value_fn": value_fn}
            _, state = extra.update(params, state, params, **options)
            return state, calls + 1

        def goes_on(carry: tuple[Any, Array]) -> Array:
            state, calls = carry
            return (calls == 0) | ((_waiting(state) > 0) & (calls < MOST))

        begun = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), tx.init(params))
        return lax.while_loop(goes_on, body, (begun, jnp.int32(0)))[1]

    calls = int(jax.jit(count)())
    if calls >= MOST:
        required = f"an update must take fewer than {MOST} batches"
        _checks.fail("optimizer", required, "more", "accumulate the gradients of fewer")
    return calls


def waiting(opt_state: optax.OptState) -> int:
    """Return the number of batches whose gradients wait in an open window, 0 if there is none."""
    return int(np.max(_waiting(opt_state))) if _windows(opt_state) else 0


def not_made(opt_state: optax.OptState, steps: int) -> list[str]:
    """Say how many updates or batches of a run count for nothing, and why.

    Of groups of parameters that skip different numbers, the largest counts.

    Args:
        opt_state: the state of the optimizer at the end.
        steps: the updates of the run until there.
    """
    updates, batches = _skipped(opt_state)
    parts = []
    if updates:
        were = "was" if updates == 1 else "were"
        parts.append(f"{updates} of {steps} updates {were} skipped, as gradients were not finite")
    if batches:
        were = "batch was" if batches == 1 else "batches were"
        parts.append(f"{batches} {were} left out, as gradients were not finite")
    elif not _has_rates_outside(opt_state):
        innermost = (w for w in _windows(opt_state) if not _windows(_inner(w)))
        multi = (w for w in innermost if isinstance(w, optax.MultiStepsState))
        made = {int(np.max(window.gradient_step)) for window in multi} - {steps}
        parts += [
            f"optax.MultiSteps made {count} updates in place of {steps}, as its windows changed in "
            "length or it left out batches"
            for count in made
        ]
    return parts


def _skipped(state: Any) -> tuple[int, int]:
    """Return how many updates were skipped, and how many batches."""
    updates = batches = 0
    for node in jax.tree.leaves(state, is_leaf=lambda n: type(n) in _SKIPPED or _accumulates(n)):
        count = int(np.max(getattr(node, _SKIPPED[type(node)]))) if type(node) in _SKIPPED else 0
        if _accumulates(node):
            updates = max(updates, _skipped(_inner(node))[0])
            batches = max(batches, count)
        elif count and _windows(node):
            batches = max(batches, count)
        else:
            updates = max(updates, count)
    return updates, batches


def _waiting(state: Any) -> Array:
    return jnp.max(jnp.stack([jnp.max(getattr(w, _PLACES[type(w)])) for w in _windows(state)]))


def _windows(state: Any) -> list[Any]:
    """Return the states of what accumulates, the inner ones too."""
    found = []
    for node in jax.tree.leaves(state, is_leaf=_accumulates):
        if _accumulates(node):
            found += [node, *_windows(_inner(node))]
    return found


def _accumulates(node: Any) -> bool:
    return type(node) in _PLACES


def _inner(node: Any) -> Any:
    return node.inner if isinstance(node, AccumulateState) else node.inner_opt_state


def _has_rates_outside(state: Any) -> bool:
    """Return whether a rule with a learning rate steps with every batch."""
    nodes = jax.tree.leaves(state, is_leaf=lambda n: _accumulates(n) or is_rule_state(n))
    return any(
        declared.name == "learning_rate"
        for node in filter(is_rule_state, nodes)
        for declared in node.declarations
    )
