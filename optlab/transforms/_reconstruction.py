"""Averages of any width, after the fact, from snapshots of two widths or more.

The average of an exponent γ after t updates weighs the parameters after update τ by about

    p(τ) = (γ + 1)/t · (τ/t)^γ    for τ ≤ t, and 0 later.

Snapshots hold averages for profiles pⱼ. Their combination Σ xⱼ pⱼ comes closest to the profile p*
that is wanted, in the mean square over τ, where

    Σⱼ ⟨pᵢ, pⱼ⟩ xⱼ = ⟨pᵢ, p*⟩  for all i,

and the same combination of the averages is the average that is wanted. For s ≤ t

    ⟨p_{s,γ}, p_{t,δ}⟩ = (γ + 1)(δ + 1)/(γ + δ + 1) · (s/t)^δ / t.

The system has large condition numbers, 1e5 with 32 snapshots of two widths, so it is solved in
float64 on the host, with profiles of norm 1; the weights are then divided by their sum. The error
reported is ‖Σ xⱼ pⱼ − p*‖/‖p*‖. For two widths 0.05 and 0.10 and snapshots evenly spaced it is

    sigma_rel          0.03     0.07     0.15     0.20
    2 snapshots        0.23     0.055    0.22     0.47
    8                  0.10     0.013    0.033    0.078
    32                 0.011    0.001    0.002    0.0065

Reference: Karras et al., CVPR (2024), EDM2, section 3.2.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optlab import _checks
from optlab._types import Array, Tree
from optlab.rules._state import exportable
from optlab.transforms._averaged_params import averages_in, is_power_ema, joined, require_any
from optlab.transforms._power_average import WIDTH, gamma_of, widths_of


@exportable("PowerEmaSnapshot")
class PowerEmaSnapshot(NamedTuple):
    """The averages of `params_power_ema` after one update, a tree that any checkpoint can hold.

    Attributes:
        step: () int32; the updates made.
        gammas: (number of widths,) float64; the exponents γ of the averages.
        averages: a tree of averages for each exponent, in the structure of the parameters.
    """

    step: Array
    gammas: np.ndarray
    averages: tuple[Tree, ...]


def power_ema_snapshot(state: Any) -> PowerEmaSnapshot:
    """Copy the averages of `params_power_ema` out of a state, for `reconstruct`.

    Eight snapshots or more, evenly spaced over a run, serve for widths from 0.05 to 0.2.

    Args:
        state: a state in which one of `params_power_ema` is nested anywhere, as `averaged_params`
            takes it.

    Returns:
        The snapshot, with buffers of its own.

    Raises:
        ValueError: the state holds no such average, or several that do not go together, or there
            has been no update.
    """
    who = "power_ema_snapshot"
    nodes = [node for node in averages_in(state) if is_power_ema(node)]
    if not nodes:
        _checks.fail(
            who,
            "the state must hold a params_power_ema",
            type(state).__name__,
            "put optlab.params_power_ema() last in the chain",
        )
    for node in nodes:
        require_any(who, node, node.step)
    kept = [widths_of(node) for node in nodes]
    if any(widths != kept[0] for widths in kept):
        texts = " and ".join(str(tuple(widths)) for widths in kept)
        _checks.fail(who, "all groups of parameters must have the same widths", texts)
    (step,) = jax.tree.leaves(nodes[0].step)
    return PowerEmaSnapshot(
        jnp.array(step, copy=True),
        np.array([gamma_of(width) for width in kept[0]]),
        tuple(joined(who, [getattr(node, name) for node in nodes]) for name in kept[0].values()),
    )


def reconstruct(
    snapshots: Sequence[PowerEmaSnapshot],
    sigma_rel: float,
    *,
    step: int | None = None,
    max_error: float = 0.1,
) -> Tree:
    """Return the average of the parameters of any relative width, made of snapshots of others.

    Args:
        snapshots: what `power_ema_snapshot` returned in the course of one run, in any order.
        sigma_rel: the relative width wanted, in (0, 1/√12 ≈ 0.2887].
        step: the update after which the average is wanted, one of those of the snapshots; None for
            the last. Later snapshots are left out.
        max_error: the largest `reconstruction_error` that is accepted, ≥ 0. Between two widths of
            one snapshot it is small; outside of them it takes many snapshots.

    Returns:
        The average in the structure of the parameters, in the types of the snapshots.

    Raises:
        ValueError: the error would exceed `max_error`; the message says what it would be. Or there
            is no snapshot, none of that step, one of another model or of several runs at once, or
            an argument is out of its range.

    Example:
        >>> import jax.numpy as jnp, optax, optlab
        >>> tx = optax.chain(optlab.sgd(1.0), optlab.params_power_ema((0.05, 0.1)))
        >>> params = jnp.array(0.0)
        >>> state, snapshots = tx.init(params), []
        >>> for t in range(1, 101):  # the parameters are the number of the update
        ...     updates, state = tx.update(jnp.array(-1.0), state, params)
        ...     params = optax.apply_updates(params, updates)
        ...     if t % 25 == 0:
        ...         snapshots.append(optlab.power_ema_snapshot(state))
        >>> print(f"{optlab.reconstruct(snapshots, 0.07):.1f}")
        92.7
        >>> print(f"{optlab.reconstruction_error(snapshots, 0.07):.3f}")
        0.036

    Reference:
        Karras et al., CVPR (2024).
    """
    who = "reconstruct"
    max_error = _checks.check_number(who, "max_error", max_error, _checks.NONNEGATIVE)
    kept, weights, error = _solution(who, snapshots, sigma_rel, step)
    if error > max_error:
        _checks.fail(
            who,
            f"snapshots must give the average of sigma_rel={sigma_rel} with a relative error of at "
            f"most {max_error}",
            f"{error:.2g} from {len(kept)} at {_texts(kept)} (too few or ill-placed snapshots)",
            "keep more of them, or accept the error with max_error",
        )
    averages = [average for snapshot in kept for average in snapshot.averages]

    def combined(*parts: Array) -> Array:
        pairs = zip(weights, parts, strict=True)
        return reduce(jnp.add, (jnp.asarray(weight, part.dtype) * part for weight, part in pairs))

    return jax.tree.map(combined, *averages)


def reconstruction_error(
    snapshots: Sequence[PowerEmaSnapshot], sigma_rel: float, step: int | None = None
) -> float:
    """Return the relative error of the weights that `reconstruct` gives the parameters.

    Args:
        snapshots: as `reconstruct` takes them.
        sigma_rel: the relative width wanted, in (0, 1/√12 ≈ 0.2887].
        step: the update after which the average is wanted; None for the last.

    Returns:
        ‖p − p*‖/‖p*‖, where p are the weights of the parameters in the course of the run, and p*
        those of an average of this width. Below 1e-7 it is not told from 0.

    Raises:
        ValueError: there is no snapshot, none of that step, or an argument is out of its range.
    """
    return _solution("reconstruction_error", snapshots, sigma_rel, step)[2]


def _solution(
    who: str, snapshots: Sequence[PowerEmaSnapshot], sigma_rel: float, step: int | None
) -> tuple[list[PowerEmaSnapshot], np.ndarray, float]:
    """Return the snapshots used, the weights of all their averages, and the relative error."""
    sigma_rel = float(_checks.check_number(who, "sigma_rel", sigma_rel, WIDTH))
    if isinstance(snapshots, PowerEmaSnapshot):
        remedy = "pass [snapshot] if there is only one"
        _checks.fail(who, "snapshots must be a list of them", "one PowerEmaSnapshot", remedy)
    snapshots = list(snapshots)
    if not snapshots:
        _checks.fail(who, "there must be at least one snapshot", "none")
    for snapshot in snapshots:
        if not isinstance(snapshot, PowerEmaSnapshot):
            got = type(snapshot).__name__
            _checks.fail(who, "snapshots must be those of power_ema_snapshot", got)
        if np.ndim(snapshot.step):
            _checks.fail(
                who,
                "a snapshot must be that of one run",
                f"one of a batch of runs, of shape {np.shape(snapshot.step)}",
                "take it from the state of one run, jax.tree.map(lambda x: x[run], states)",
            )
    _check_alike(who, snapshots)
    steps = [int(snapshot.step) for snapshot in snapshots]
    last = max(steps) if step is None else step
    if last not in steps:
        _checks.fail(who, "step must be that of a snapshot", f"step={step}", _texts(snapshots))
    in_order = sorted(snapshots, key=lambda own: int(own.step))
    kept = [snapshot for snapshot in in_order if int(snapshot.step) <= last]
    times = np.concatenate([[int(own.step) / last] * len(own.gammas) for own in kept])
    gammas = np.concatenate([np.asarray(own.gammas, np.float64) for own in kept])
    return kept, *weights_of_profiles(times, gammas, gamma_of(sigma_rel))


def _check_alike(who: str, snapshots: Sequence[PowerEmaSnapshot]) -> None:
    """Require that the averages of all snapshots have the same arrays."""
    first, *others = [average for snapshot in snapshots for average in snapshot.averages]
    expected = _shapes(first)
    for other in others:
        shapes = _shapes(other)
        if shapes != expected or jax.tree.structure(other) != jax.tree.structure(first):
            different = [
                f"{shapes.get(path, 'nothing')} and {expected.get(path, 'nothing')} at {path}"
                for path in sorted(shapes | expected)
                if shapes.get(path) != expected.get(path)
            ]
            _checks.fail(
                who,
                "snapshots must be those of one model",
                ", ".join(different[:3]) or "trees of different structures",
            )


def _shapes(tree: Tree) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays in a tree, by their paths."""
    leaves = jax.tree.leaves_with_path(tree)
    return {_checks.path_text(path): jnp.shape(leaf) for path, leaf in leaves}


def weights_of_profiles(
    times: np.ndarray, gammas: np.ndarray, gamma: float
) -> tuple[np.ndarray, float]:
    """Return the weights by which profiles come closest to that of `gamma` at time 1.

    Args:
        times: (n,) when each profile ends, in (0, 1].
        gammas: (n,) their exponents.
        gamma: the exponent wanted.

    Returns:
        Weights, (n,), of sum 1, and the relative error.
    """
    times, gammas = np.append(times, 1.0), np.append(gammas, gamma)
    products = _products(times, gammas)
    norms = np.sqrt(np.diag(products))
    cosines = products / np.outer(norms, norms)
    weights = np.linalg.lstsq(cosines[:-1, :-1], cosines[:-1, -1])[0] / norms[:-1]
    weights /= weights.sum()
    # Of the difference of the two profiles; its square may be a rounding error below 0.
    difference = np.append(weights, -1.0) * norms / norms[-1]
    return weights, float(np.sqrt(max(0.0, difference @ cosines @ difference)))


def _products(times: np.ndarray, gammas: np.ndarray) -> np.ndarray:
    """Return the inner products of all pairs of profiles."""
    s, t = times[:, None], times[None, :]
    own, other = gammas[:, None], gammas[None, :]
    ratio = np.minimum(s, t) / np.maximum(s, t)
    of_later = np.where(s <= t, other, own)
    return (own + 1) * (other + 1) / (own + other + 1) * ratio**of_later / np.maximum(s, t)


def _texts(snapshots: Sequence[PowerEmaSnapshot]) -> str:
    """Return the steps of snapshots as errors show them."""
    steps = sorted({int(snapshot.step) for snapshot in snapshots})
    shown = ", ".join(map(str, steps[:8])) + (", …" if len(steps) > 8 else "")
    return f"steps {shown}"
