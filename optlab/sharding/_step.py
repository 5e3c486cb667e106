"""A training step on a divided state: gradients reduced once, parameters gathered once."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from optlab import _checks
from optlab._tree import is_traced
from optlab._types import Array, Tree
from optlab.sharding._specs import (
    check_mesh,
    divided,
    params_on,
    sharding_of,
)
from optlab.sharding._state import check_divides, state_sharding
from optlab.wrappers._loss_scale import gradients_of

_WHO = "sharding.step"


class ShardedStep:
    """A compiled training step on a mesh, as `step` makes it.

    Calling it with (params, state, batch, *extra) returns (params, state, loss), with a fourth
    value, what else the loss returns, if it was made with `has_aux`. Unless it was made without
    `donate`, the memory of the parameters and the state that are passed in holds the new ones, so
    that those can no longer be used.

    Attributes:
        params_sharding: the shardings of the parameters, before and after.
        state_sharding: those of the state.
        batch_sharding: that of each array of a batch that has axes.
    """

    def __init__(
        self,
        tx: optax.GradientTransformation,
        loss: Callable[..., Any],
        params: Tree,
        mesh: Mesh,
        axis: str,
        has_aux: bool,
        donate: bool,
    ):
        self._update = optax.with_extra_args_support(tx).update
        self._loss, self._mesh, self._axis, self._has_aux = loss, mesh, axis, has_aux
        make, own = sharding_of(mesh), list(params_on(_WHO, params, mesh).values())
        structure = jax.tree.structure(params)
        self.params_sharding = structure.unflatten([make(param.entries) for param in own])
        self.state_sharding = state_sharding(tx, params, mesh, axis)
        self.batch_sharding = NamedSharding(mesh, PartitionSpec(axis))
        size = mesh.shape[axis]
        self._parts = structure.unflatten(
            [make(divided(param.shape, param, axis, size)) for param in own]
        )
        self._shapes = [param.shape for param in own]
        explicit = AxisType.Explicit in mesh.axis_types
        self._place = jax.sharding.reshard if explicit else lax.with_sharding_constraint
        self._donated = (0, 1) if donate else ()
        self._programs: dict[int, Any] = {}

    def __call__(self, params: Tree, state: Any, batch: Tree, *extra: Any) -> tuple[Any, ...]:
        """Make one step; see the class."""
        if any(map(is_traced, jax.tree.leaves((params, state, batch)))):
            return self._body(params, state, batch, *extra)
        return self._run(self._program(extra), params, state, batch, *extra)

    def lower(self, params: Tree, state: Any, batch: Tree, *extra: Any) -> jax.stages.Lowered:
        """Lower the program for arguments like these, arrays or shapes with shardings."""
        return self._run(self._program(extra).lower, params, state, batch, *extra)

    def _run(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            with jax.set_mesh(self._mesh):
                return call(*args)
        except (TypeError, ValueError):
            # JAX knows what does not fit at no cost, but not what to do about it.
            self._check(*args[:3])
            raise

    def _program(self, extra: Sequence[Any]) -> Any:
        """Return the compiled function for as many extra arguments."""
        count = len(extra)
        if count not in self._programs:
            places = (self.params_sharding, self.state_sharding, None, *[None] * count)
            self._programs[count] = jax.jit(
                self._body, in_shardings=places, donate_argnums=self._donated
            )
        return self._programs[count]

    def _body(self, params: Tree, state: Any, batch: Tree, *extra: Any) -> tuple[Any, ...]:
        self._check_shapes(params, state, batch)
        batch = jax.tree.map(lambda x: self._place(x, self.batch_sharding) if x.ndim else x, batch)

        def loss(params: Tree) -> tuple[Array, Any]:
            result = self._loss(params, batch, *extra)
            return result if self._has_aux else (result, None)

        value, aux, scaled, grads = gradients_of(loss, params, state)
        # Each device goes on with the part of the gradients and parameters that its state is for.
        grads, scaled = (self._placed(tree, self._parts) for tree in (grads, scaled))
        own = self._placed(params, self._parts)
        updates, state = self._update(
            scaled, state, own, value=value, grad=grads, value_fn=lambda params: loss(params)[0]
        )
        params = self._placed(optax.apply_updates(own, updates), self.params_sharding)
        state = self._placed(state, self.state_sharding)
        return (params, state, value, aux) if self._has_aux else (params, state, value)

    def _placed(self, tree: Tree, shardings: Tree) -> Tree:
        return jax.tree.map(self._place, tree, shardings)

    def _check(self, params: Tree, state: Any, batch: Tree) -> None:
        """Require arguments that fit what the step was made for, and lie where it expects them."""
        self._check_shapes(params, state, batch)
        self._check_place("params", params, self.params_sharding, "jax.device_put them")
        remedy = "make it with optlab.sharding.init, or jax.device_put it"
        self._check_place("state", state, self.state_sharding, remedy)
        devices = set(self._mesh.devices.flat)
        for path, leaf in jax.tree.leaves_with_path(batch):
            if getattr(leaf, "committed", False) and leaf.sharding.device_set != devices:
                required = "batch must be on the devices of the mesh of the step"
                got = f"{_checks.path_text(path)} on {leaf.sharding}"
                _checks.fail(_WHO, required, got, "pass that mesh to optlab.sharding.divide_batch")

    def _check_shapes(self, params: Tree, state: Any, batch: Tree) -> None:
        required = "params must have the structure and shapes of those that the step was made for"
        remedy = "make a step for these parameters"
        if jax.tree.structure(params) != jax.tree.structure(self.params_sharding):
            _checks.fail(_WHO, required, f"{jax.tree.structure(params)}", remedy)
        shapes = map(np.shape, jax.tree.leaves(params))
        for (path, _), got, shape in zip(
            jax.tree.leaves_with_path(params), shapes, self._shapes, strict=True
        ):
            if got != shape:
                _checks.fail(_WHO, required, f"{got} at {_checks.path_text(path)}", remedy)
        if jax.tree.structure(state) != jax.tree.structure(self.state_sharding):
            _checks.fail(
                _WHO,
                "state must be that of the transformation that the step was made for",
                f"{jax.tree.structure(state)}",
                "make it with optlab.sharding.init",
            )
        check_divides(_WHO, batch, self._mesh, self._axis)

    def _check_place(self, what: str, tree: Tree, shardings: Tree, remedy: str) -> None:
        for (path, leaf), where in zip(
            jax.tree.leaves_with_path(tree), jax.tree.leaves(shardings), strict=True
        ):
            now = getattr(leaf, "sharding", None)
            if now is not None and not now.is_equivalent_to(where, len(where.spec)):
                got = getattr(now, "spec", None)
                got = f"{now}" if got is None else f"{got}"
                _checks.fail(
                    _WHO,
                    f"{what} must lie on the mesh as {what}_sharding of the step says, "
                    f"{_checks.path_text(path)} as {where.spec}",
                    got,
                    f"{remedy} to step.{what}_sharding",
                )


def step(
    tx: optax.GradientTransformation,
    loss: Callable[..., Any],
    params: Tree,
    mesh: Mesh,
    axis: str = "data",
    *,
    has_aux: bool = False,
    donate: bool = True,
) -> ShardedStep:
    """Make a training step whose devices share the batch, and divide the optimizer's state.

    Each device computes the gradient on its part of the batch. Gradients are reduced once over all
    devices; each device then updates the part of the parameters that its part of the state is for;
    and the new parameters are gathered once. The result is that of one device that has the whole
    batch, up to the order of sums:

        loss, gradients = jax.value_and_grad(loss)(params, batch, *extra)
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)

    Rules that look at each number alone (SGD, Adam, Lion) move nothing else. Norms (clipping, LARS,
    LAMB) also reduce a number for each array, Adafactor also its factors, and rules on matrices
    (Muon, Shampoo, SOAP) gather matrices. `collectives` lists all that a step moves.

    Args:
        tx: the optimizer. Its `update` is also given `value`, `grad` and `value_fn`, as
            `optax.lbfgs` and `optlab.reduce_on_plateau` need them.
        loss: (params, batch, *extra) → () float, the loss of the whole batch, mostly a mean over
            its examples; with `has_aux`, (loss, anything).
        params: the parameters or their shapes, which say how these lie on the mesh: whole on each
            device, or divided.
        mesh: the devices, with automatic or explicit axes.
        axis: the axis of the mesh that divides batches, along their first axis, and the state.
        has_aux: whether `loss` returns something besides the loss, such as new running statistics.
        donate: whether the new parameters and the new state take the memory of those before, which
            can then no longer be used. What `jax.device_put` returns may share its memory with what
            it was given.

    Returns:
        A `ShardedStep`: (params, state, batch, *extra) → (params, state, loss), compiled. `init`
        makes the state, `divide_batch` the batch. Extra arguments, such as a random key, go to
        `loss` as they are.

    Raises:
        ValueError: `tx` is no transformation, `loss` is no function, the mesh does not have the
            axis; when called, parameters, state or batch do not fit.

    Example:
        >>> import jax, jax.numpy as jnp, optlab
        >>> from optlab import sharding
        >>> mesh, tx = jax.make_mesh((jax.device_count(),), ("data",)), optlab.adam(0.1)
        >>> params = {"w": jnp.ones(8)}
        >>> def loss(params, batch):
        ...     return jnp.mean(batch @ params["w"])
        >>> train = sharding.step(tx, loss, params, mesh)
        >>> params = jax.device_put(params, train.params_sharding)
        >>> state = sharding.init(tx, params, mesh)
        >>> batch = sharding.divide_batch(jnp.ones((4, 8)), mesh)
        >>> params, state, value = train(params, state, batch)
        >>> print(value, params["w"][0])
        8.0 0.9
    """
    check_mesh(_WHO, mesh, axis, of_devices=True)
    if len({*mesh.axis_types}) > 1:
        required = "the axes of the mesh must be all automatic or all explicit"
        _checks.fail(_WHO, required, str(mesh.axis_types), "pass axis_types to jax.make_mesh")
    _checks.check_transformation(_WHO, tx)
    if not callable(loss):
        remedy = "pass a function (params, batch, *extra) → loss"
        _checks.fail(_WHO, "loss must be a function", repr(loss), remedy)
    has_aux = _checks.check_flag(_WHO, "has_aux", has_aux)
    donate = _checks.check_flag(_WHO, "donate", donate)
    return ShardedStep(tx, loss, params, mesh, axis, has_aux, donate)
