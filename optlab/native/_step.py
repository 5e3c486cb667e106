"""One update and its application, with each leaf in one pass over memory on a CPU."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.core
import optax

from optlab import _checks
from optlab._jaxpr import for_loops, is_array
from optlab._tree import is_traced
from optlab._types import Tree
from optlab.native._compiler import Unavailable
from optlab.native._graph import Graph, Operand, Value
from optlab.native._plan import Plan
from optlab.native._report import report

Step = Callable[..., tuple[Tree, Any]]
"""(gradients, state, params, **extra_args) → (params, state)."""


def step(tx: optax.GradientTransformation) -> Step:
    """Make the function of a whole step, with loops that read and write each array once on a CPU.

    The step is `tx.update` and `optax.apply_updates`, of any chain. On a CPU XLA writes each array
    that a step returns in a loop of its own, and reads anew what they share. Here the arithmetic
    that JAX traces is compiled as one loop for a leaf, by the system's compiler of C.

    A compiled loop is kept in the user's cache folder. Where there is no compiler, on another
    platform, in `vmap`, and for what a loop cannot compute, XLA computes the step, or that part of
    it. One warning for each reason, of the logger `optlab.native`, says so.

    Args:
        tx: the transformation.

    Returns:
        A function (gradients, state, params, **extra_args) → (params, state), for use in `jit`,
        `scan` and `vmap`, or alone. Extra arguments go to `tx.update`. Donate params and state
        where you can, and return them in the order in which you take them: the results then take
        their memory. Otherwise XLA copies them first.

    Raises:
        ValueError: `tx` is not a transformation; what else is wrong, `tx` says.

    Example:
        >>> import jax, jax.numpy as jnp, optlab
        >>> tx = optlab.adamw(1e-3)
        >>> step = optlab.native.step(tx)
        >>> @jax.jit(donate_argnums=(0, 1))
        ... def train_step(params, state):
        ...     grads = jax.grad(lambda p: jnp.sum(0.1 * p["w"]))(params)
        ...     return step(grads, state, params)
        >>> params = {"w": jnp.ones((4, 3))}
        >>> params, state = train_step(params, tx.init(params))
        >>> print(params["w"][0])
        [0.99899 0.99899 0.99899]
    """
    _checks.check_transformation("native.step", tx)
    update = optax.with_extra_args_support(tx).update

    def plain(grads: Tree, state: Any, params: Tree, **extra_args: Any) -> tuple[Tree, Any]:
        updates, state = update(grads, state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(partial(_with_loops, plain, donated=False))

    def native_step(grads: Tree, state: Any, params: Tree, **extra_args: Any) -> tuple[Tree, Any]:
        if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
            return plain(grads, state, params, **extra_args)
        if any(map(is_traced, jax.tree.leaves((grads, state, params, extra_args)))):
            return _with_loops(plain, grads, state, params, extra_args, donated=True)
        if not all(map(is_array, jax.tree.leaves(extra_args))):
            return plain(grads, state, params, **extra_args)
        return compiled(grads, state, params, extra_args)

    return native_step


def _with_loops(
    plain: Step, grads: Tree, state: Any, params: Tree, extra_args: Any, *, donated: bool
) -> tuple[Tree, Any]:
    """Compute a step within a function that JAX traces."""
    if jax.default_backend() != "cpu":
        report(f"there are no loops for {jax.default_backend()}: XLA computes the step")
        return plain(grads, state, params, **extra_args)
    if not jax.sharding.get_abstract_mesh().empty:
        report("there are no loops under a mesh of devices: XLA computes the step")
        return plain(grads, state, params, **extra_args)
    flat, structure = jax.tree.flatten((state, params))

    def function(grads: Tree, *flat: Any) -> tuple[Tree, Any]:
        state, params = jax.tree.unflatten(structure, flat)
        return plain(grads, state, params, **extra_args)

    token = for_loops.set(True)
    try:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(grads, *flat)
    finally:
        for_loops.reset(token)
    arguments = [*closed.consts, *jax.tree.leaves(grads), *flat]
    graph = Graph(closed.jaxpr, arguments)
    try:
        plan = Plan(graph, _places(graph, shapes, (params, state)))
    except Unavailable as error:
        report(f"{error}: XLA computes the step")
        return plain(grads, state, params, **extra_args)
    if plan.blame:
        report(f"XLA computes what comes of {', '.join(sorted(plan.blame))}")
    results = _differentiable(closed, plan, donated)(*arguments)
    return jax.tree.unflatten(jax.tree.structure(shapes), results)


def _places(graph: Graph, results: Tree, arguments: Tree) -> dict[Operand, Value]:
    """Return for each result the argument at the same place of the state or the parameters."""
    if jax.tree.structure(results) != jax.tree.structure(arguments):
        return {}
    _, state = arguments
    values = graph.arguments[len(graph.arguments) - len(jax.tree.leaves(arguments)) :]
    count = len(jax.tree.leaves(state))
    values = [*values[count:], *values[:count]]
    return {
        result: value
        for result, value in zip(graph.results, values, strict=True)
        if isinstance(result, Value)
    }


def _differentiable(closed: Any, plan: Plan, donated: bool) -> Callable[..., Sequence[Any]]:
    """Return the program with loops, whose derivative is that of the program without."""

    @jax.custom_jvp
    def run(*arguments: Any) -> list[Any]:
        return plan.run(arguments, donated)

    @run.defjvp
    def derivative(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
        count = len(closed.consts)

        def program(*arguments: Any) -> list[Any]:
            return jax.core.eval_jaxpr(closed.jaxpr, arguments[:count], *arguments[count:])

        return jax.jvp(program, primals, tangents)

    return run
