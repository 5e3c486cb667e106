"""The optimizers, by the names the command line knows, each with its direction."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from optlab import optimizers, reference
from optlab.registry._row import (
    DECAY,
    STEPS,
    Arrays,
    Row,
    TreeReference,
    bad,
    number_errors,
    of_descent,
    of_direction,
)

RATE = {"learning_rate": (0.1, 0.05)}
ADAM = {"b1": (0.9, 0.5), "b2": (0.999, 0.9), "eps": (1e-8, 0.1), "eps_root": (0.0, 0.1)}
ADAM_SAMPLES = (
    {},
    {"nesterov": True},
    {"amsgrad": True, "b2": 0.9},
    {"b1": 0.0, "b2": 0.5, "eps": 0.1, "eps_root": 0.01},
)
MU_DTYPE = ({"mu_dtype": int}, "mu_dtype must be a floating-point type or None")
NESTEROV = ({"nesterov": True}, "nesterov needs momentum, got momentum=None")


def flag_errors(*names: str) -> tuple[tuple[dict[str, Any], str], ...]:
    """Return what options that are true or false must not be."""
    return tuple(
        ({name: value}, f"{name} must be True or False, got {name}={value!r}")
        for name in names
        for value in ("no", 1)
    )


def sizes_errors(*names: str) -> tuple[tuple[dict[str, Any], str], ...]:
    """Return what sizes that are integers ≥ 1 must not be."""
    return tuple(bad(name, value, STEPS) for name in names for value in (0, 2.5))


MATRICES = {"layers": (2, 4, 3), "s": (), "w": (4, 3)}
"""A stack of matrices, a scalar, and a matrix."""

OF_MATRICES = {
    "a_donated_step_needs_no_memory_beside_parameters_and_state": "leaves of one shape are stacked",
    "a_million_updates_keep_to_the_reference": "eigenvectors of close eigenvalues turn by far more "
    "than a rounding",
    "a_none_gradient_leaves_its_slots_alone": "a tree without a matrix is refused",
    "an_integer_leaf_is_an_error": "a tree without a matrix is refused before",
    "complex_equals_two_reals": "complex arrays are refused",
    "extreme_gradients_match_reference": "small coordinates are mixed with large ones, whose "
    "roundings they then have",
    "extreme_parameters_match_reference": "its gradients are extreme, too",
    "huge_gradients_again_and_again_match_reference": "an array's norm is bounded in place of each "
    "element",
    "flattening_changes_nothing": "a vector is no matrix",
    "odd_trees_pass_through": "a tree without a matrix is refused",
    "tree_map_params_finds_every_slot": "factors have other shapes than their parameters",
}
"""What does not hold of a rule that factors matrices."""


def _of_optimizer(rule: Callable[..., Any]) -> TreeReference:
    """Return the reference on lists of arrays, from that of new parameters on one array."""

    def tree_reference(gradients: Arrays, params: Arrays, state: Any, t: int, **hyperparams: Any):
        state = state or [{}] * len(gradients)
        pairs = [
            rule(p, g, s, t, **hyperparams)
            for p, g, s in zip(params, gradients, state, strict=True)
        ]
        return [new - p for (new, _), p in zip(pairs, params, strict=True)], [s for _, s in pairs]

    return tree_reference


def _lars(
    gradients: Arrays,
    params: Arrays,
    state: Any,
    t: int,
    *,
    learning_rate: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    rate_in_velocity: bool = True,
    max_grad_norm: float | None = None,
    **hyperparams: Any,
):
    if max_grad_norm is not None:
        gradients = reference.clip_by_global_norm(gradients, max_grad_norm)
    directions, _ = of_direction(reference.scale_by_lars, True)(
        gradients, params, None, t, **hyperparams
    )
    inside, outside = (-learning_rate, 1) if rate_in_velocity else (1, -learning_rate)
    steps, state = of_direction(reference.scale_by_momentum)(
        [inside * u for u in directions], params, state, t, momentum=momentum, nesterov=nesterov
    )
    return [outside * s for s in steps], state


def _lamb(
    gradients: Arrays,
    params: Arrays,
    state: Any,
    t: int,
    *,
    learning_rate: float,
    **hyperparams: Any,
):
    directions, state = of_direction(reference.scale_by_lamb, True)(
        gradients, params, state, t, **hyperparams
    )
    return [-learning_rate * u for u in directions], state


def _rms(x: np.ndarray) -> float:
    return np.linalg.norm(x) / x.size**0.5


def _adafactor(
    gradients: Arrays,
    params: Arrays,
    state: Any,
    t: int,
    *,
    learning_rate: float | None,
    multiply_by_parameter_scale: bool = True,
    min_scale: float = 1e-3,
    momentum: float | None = None,
    weight_decay_rate: float = 0.0,
    warmup_init: bool = False,
    **hyperparams: Any,
):
    slots, averages = state or (None, [0.0] * len(params))
    directions, slots = of_direction(reference.scale_by_adafactor)(
        gradients, params, slots, t, **hyperparams
    )
    rate = learning_rate
    if rate is None:
        rate = min(1e-6 * t if warmup_init else 1e-2, t**-0.5)
    updates = [-rate * u for u in directions]
    if multiply_by_parameter_scale:
        updates = [max(min_scale, _rms(p)) * u for u, p in zip(updates, params, strict=True)]
    if momentum is not None:
        pairs = zip(averages, updates, strict=True)
        averages = updates = [momentum * m + (1 - momentum) * u for m, u in pairs]
    updates = [u - weight_decay_rate * p for u, p in zip(updates, params, strict=True)]
    return updates, (slots, averages)


_OF_LAYERS = {
    "flattening_changes_nothing": "one long vector has another norm than each array",
}
_BY_NORMS = {**_OF_LAYERS, "complex_equals_two_reals": "its norm is that of both parts"}


OPTIMIZERS: Mapping[str, Row] = {
    row.name: row
    for row in (
        Row(
            name="sgd",
            summary="θ ← θ − αg",
            constructor=optimizers.sgd,
            reference=_of_optimizer(reference.sgd),
            hyperparams=RATE,
            errors=(NESTEROV, ({"dampening": 0.1}, "dampening needs momentum, got momentum=None")),
            exemplar=True,
            drift=(1e-7,),
        ),
        Row(
            name="momentum",
            summary="v ← βv + g; θ ← θ − αv (heavy ball)",
            constructor=optimizers.sgd,
            reference=_of_optimizer(reference.sgd),
            direction=optimizers.scale_by_momentum,
            direction_reference=reference.scale_by_momentum,
            fixed={"momentum": 0.9},
            samples=({}, {"nesterov": True}, {"dampening": 0.3, "nesterov": True}),
            hyperparams=RATE | {"momentum": (0.9, 0.5), "dampening": (0.0, 0.5)},
            errors=(
                ({"accumulator_dtype": int}, "accumulator_dtype must be a floating-point type"),
                *flag_errors("nesterov"),
            ),
            drift=(4e-7, 4e-7, 4e-7),
        ),
        Row(
            name="adagrad",
            summary="s ← s + g²; θ ← θ − αg/(√s + ε)",
            constructor=optimizers.adagrad,
            reference=_of_optimizer(reference.adagrad),
            direction=optimizers.scale_by_adagrad,
            direction_reference=reference.scale_by_adagrad,
            samples=(
                {},
                {"initial_accumulator_value": 0.1, "eps": 0.01},
                {"eps_in_sqrt": True, "eps": 0.01},
                {"compensated": True},
            ),
            hyperparams=RATE | {"eps": (1e-8, 0.1)},
            errors=(
                *number_errors("initial_accumulator_value"),
                *flag_errors("eps_in_sqrt", "compensated"),
            ),
            squares=True,
            # A square below 2⁻²⁵ of the sum so far is rounded away unless it is compensated.
            drift=(8e-4, 8e-4, 8e-4, 3e-7),
            exempt={
                "huge_gradients_again_and_again_match_reference": "the sum of their squares ends "
                "at the largest finite number",
            },
        ),
        Row(
            name="rmsprop",
            summary="s ← βs + (1−β)g²; θ ← θ − αg/(√s + ε)",
            constructor=optimizers.rmsprop,
            reference=_of_optimizer(reference.rmsprop),
            direction=optimizers.scale_by_rmsprop,
            direction_reference=reference.scale_by_rmsprop,
            samples=(
                {},
                {"eps": 1e-3, "eps_in_sqrt": True, "initial_scale": 1.0},
                {"decay": 0.99, "centered": True, "eps": 1e-3},
                {"centered": True, "eps": 1e-3, "eps_in_sqrt": True},
                {"bias_correction": True, "decay": 0.99},
                {"momentum": 0.9},
                {"momentum": 0.8, "nesterov": True, "centered": True, "eps": 1e-3},
            ),
            hyperparams=RATE | {"decay": (0.9, 0.99), "eps": (1e-8, 0.1), "momentum": (0.9, 0.5)},
            errors=(
                *number_errors("initial_scale"),
                *flag_errors("eps_in_sqrt", "centered", "bias_correction"),
                NESTEROV,
            ),
            squares=True,
            drift=(2.5e-7, 2e-7, 6e-7, 2.5e-7, 4e-7, 4e-7),
        ),
        Row(
            name="adam",
            summary="m, v averages of g, g², unbiased; θ ← θ − αm̂/(√v̂ + ε)",
            constructor=optimizers.adam,
            reference=_of_optimizer(reference.adam),
            direction=optimizers.scale_by_adam,
            direction_reference=reference.scale_by_adam,
            samples=ADAM_SAMPLES,
            hyperparams=RATE | ADAM,
            errors=(MU_DTYPE, *flag_errors("nesterov", "amsgrad")),
            exemplar=True,
            squares=True,
            drift=(8e-7, 8e-7, 4e-7, 1.5e-7),
        ),
        Row(
            name="adamw",
            summary="θ ← θ − α(m̂/(√v̂ + ε) + λθ), decay decoupled",
            constructor=optimizers.adamw,
            reference=_of_optimizer(reference.adamw),
            samples=({}, {"weight_decay": 0.3, "amsgrad": True}),
            hyperparams=RATE | ADAM | {"weight_decay": (0.01, 0.2)},
            errors=(MU_DTYPE,),
            needs_params=True,
            exemplar=True,
            squares=True,
            drift=(8e-7, 4e-7),
            exempt={"zero_gradient_is_a_no_op": "decay moves the parameters"},
        ),
        Row(
            name="lion",
            summary="θ ← θ − α(sign(β₁m + (1−β₁)g) + λθ); m ← β₂m + (1−β₂)g",
            constructor=optimizers.lion,
            reference=of_descent(reference.scale_by_lion),
            direction=optimizers.scale_by_lion,
            direction_reference=reference.scale_by_lion,
            hyperparams=RATE | {"b1": (0.9, 0.5), "b2": (0.99, 0.9), "weight_decay": (0.0, 0.2)},
            errors=(MU_DTYPE,),
            needs_params=True,
            squares=True,
            exempt={
                "a_donated_step_needs_no_memory_beside_parameters_and_state": "XLA copies the old "
                "momentum, which the update reads after the new one is written",
                "extreme_gradients_match_reference": "the sign of a number that counts as 0 is 0",
                "a_million_updates_keep_to_the_reference": "the sign jumps where a momentum "
                "passes through 0, so that one rounding can move an update by 2",
            },
        ),
        Row(
            name="adafactor",
            summary="V averages g², kept as a row and a column; θ ← θ − α·RMS(θ)·g/√V",
            constructor=optimizers.adafactor,
            reference=_adafactor,
            direction=optimizers.scale_by_adafactor,
            direction_reference=reference.scale_by_adafactor,
            samples=(
                {"min_dim_size_to_factor": 2},
                {"momentum": 0.9, "weight_decay_rate": 0.01, "clipping_threshold": None},
                {
                    "min_dim_size_to_factor": 2,
                    "learning_rate": None,
                    "multiply_by_parameter_scale": False,
                    "decay_offset": 3,
                    "eps": 1e-3,
                },
                {"learning_rate": None, "warmup_init": True, "factored": False},
            ),
            hyperparams=RATE
            | {
                "decay_rate": (0.8, 0.5),
                "decay_offset": (0.0, 2.0),
                "clipping_threshold": (1.0, 0.5),
                "eps": (1e-30, 0.1),
                "min_scale": (1e-3, 2.0),
            },
            errors=(
                *flag_errors("factored", "multiply_by_parameter_scale"),
                ({"warmup_init": True}, "warmup_init needs the relative step, learning_rate=None"),
                ({"momentum": 1.0}, "momentum must be in [0, 1), got momentum=1.0"),
                bad("min_dim_size_to_factor", 0, "an integer >= 1"),
            ),
            needs_params=True,
            elementwise=False,
            squares=True,
            # An average that hardly changes, as that of ε = 1e-3 and smaller squares, stops short
            # by a rounding over w, which falls to 1.6e-5.
            drift=(4e-6, 4e-6, 1e-3, 7e-6),
            exempt={
                **_OF_LAYERS,
                "tree_map_params_finds_every_slot": "rows and columns have other shapes",
                "a_donated_step_needs_no_memory_beside_parameters_and_state": "the mean square of "
                "an array's update is known when all of it is",
            },
        ),
        Row(
            name="lars",
            summary="v ← μv + αξ‖θ‖/(‖g‖ + λ‖θ‖)·(g + λθ); θ ← θ − v, norms of each array",
            constructor=optimizers.lars,
            reference=_lars,
            direction=optimizers.scale_by_lars,
            direction_reference=reference.scale_by_lars,
            direction_needs_params=True,
            # With ε = 0 a gradient that counts as 0 has the ratio 1, and any other a large one.
            samples=(
                {"eps": 1e-8},
                {
                    "eps": 1e-3,
                    "weight_decay": 0.1,
                    "weight_decay_mask": True,
                    "trust_ratio_mask": True,
                    "nesterov": True,
                },
                {
                    "eps": 1e-8,
                    "weight_decay": 0.1,
                    "norm_of_sum": True,
                    "rate_in_velocity": False,
                    "max_trust_ratio": 0.002,
                    "max_grad_norm": 5.0,
                },
            ),
            hyperparams=RATE
            | {
                "weight_decay": (0.0, 0.1),
                "trust_coefficient": (0.001, 0.1),
                "eps": (1e-8, 0.1),
                "momentum": (0.9, 0.5),
            },
            errors=(
                ({**NESTEROV[0], "momentum": None}, NESTEROV[1]),
                *flag_errors("norm_of_sum", "rate_in_velocity"),
                *number_errors("max_trust_ratio"),
            ),
            needs_params=True,
            elementwise=False,
            drift=(2.5e-7, 3e-7, 4e-7),
            exempt=_BY_NORMS,
        ),
        Row(
            name="lamb",
            summary="r = m̂/(√v̂ + ε) + λθ; θ ← θ − α‖θ‖/‖r‖·r, norms of each array",
            constructor=optimizers.lamb,
            reference=_lamb,
            direction=optimizers.scale_by_lamb,
            direction_reference=reference.scale_by_lamb,
            direction_needs_params=True,
            # Without decay the direction of gradients that count as 0 is 0, and of others large.
            samples=(
                {"weight_decay": 0.1},
                {
                    "weight_decay": 0.3,
                    "b1": 0.0,
                    "b2": 0.5,
                    "eps": 0.1,
                    "eps_root": 0.01,
                    "mask": True,
                    "max_trust_ratio": 5.0,
                },
            ),
            hyperparams=RATE | ADAM | {"eps": (1e-6, 0.1), "weight_decay": (0.1, 0.2)},
            errors=number_errors("max_trust_ratio"),
            needs_params=True,
            elementwise=False,
            squares=True,
            drift=(8e-7, 4e-7),
            exempt={
                **_BY_NORMS,
                "zero_gradient_is_a_no_op": "decay moves the parameters",
            },
        ),
        Row(
            name="muon",
            summary="m ← βm + (1−β)g; θ ← θ − α(s·orthogonal factor of m + λθ); others by AdamW",
            constructor=optimizers.muon,
            reference=_of_optimizer(reference.muon),
            direction=optimizers.scale_by_muon,
            direction_reference=reference.scale_by_muon,
            samples=(
                {},
                {"ns_coeffs": "polar_express", "ns_steps": 8, "scale": "scion"},
                {
                    "nesterov": False,
                    "ns_coeffs": "you",
                    "scale": "keller_jordan",
                    "adam_learning_rate": 0.02,
                    "adam_weight_decay": 0.3,
                },
            ),
            hyperparams=RATE
            | {
                "beta": (0.95, 0.5),
                "eps": (1e-7, 0.1),
                "weight_decay": (0.01, 0.2),
                "adam_b1": (0.9, 0.5),
                "adam_b2": (0.999, 0.9),
                "adam_eps": (1e-8, 0.1),
                "adam_eps_root": (0.0, 0.1),
            },
            errors=(
                MU_DTYPE,
                ({"ns_dtype": int}, "ns_dtype must be a floating-point type or None"),
                ({"ns_coeffs": "quintic"}, "ns_coeffs must be 'keller_jordan', 'you', "),
                ({"ns_coeffs": ((1.0, 2.0),)}, "ns_coeffs must be a name, or finite rows"),
                ({"ns_steps": 0}, "ns_steps must be an integer >= 1, got ns_steps=0"),
                ({"scale": "rms"}, "scale must be one of 'moonshot', 'keller_jordan', 'scion'"),
                ({"ns_precision": "low"}, "ns_precision must be 'default', 'high', 'highest'"),
                *flag_errors("nesterov"),
            ),
            needs_params=True,
            squares=True,
            elementwise=False,
            gain=7000,  # the slope at 0 of eight steps of Polar Express
            # Products of rounded matrices, again and again; see `rules._newton_schulz._groups`.
            rtol=2e-5,
            exempt={
                "zero_gradient_is_a_no_op": "decay moves the parameters",
                "a_donated_step_needs_no_memory_beside_parameters_and_state": "leaves of one shape "
                "are stacked",
                "complex_equals_two_reals": "matrices must be real",
                "a_million_updates_keep_to_the_reference": "an update depends on the last few "
                "hundred gradients, and the reference of matrices takes hours",
                "flattening_changes_nothing": "a vector is no matrix",
            },
        ),
        Row(
            name="shampoo",
            summary="m̂ times roots of averages of GGᵀ and GᵀG, for matrices",
            constructor=optimizers.shampoo,
            reference=_of_optimizer(reference.shampoo),
            direction=optimizers.scale_by_shampoo,
            direction_reference=reference.scale_by_shampoo,
            # In float32 an eigenvalue is known to 6e-8 of the largest one, beside which eps stands.
            samples=(
                {"eps": 0.1},
                {"eps": 0.1, "b2": 0.9, "grafting": None, "one_sided": True, "start_step": 3},
                {"eps": 0.1, "grafting": "adagrad", "accumulate": True, "momentum": 0.9},
                {"eps": 1.0, "eps_place": "absolute", "exponent": 0.5, "grafting": "sgd"}
                | {"block_size": 2, "precondition_frequency": 3},
                {"eps": 0.1, "grafting": "rmsprop", "momentum": 0.5, "nesterov": True}
                | {"max_precondition_dim": 3},
            ),
            hyperparams=RATE
            | {"b1": (0.9, 0.5), "b2": (0.999, 0.9), "eps": (0.1, 0.3), "graft_eps": (1e-8, 0.1)}
            | {"weight_decay": (0.01, 0.2)},
            errors=(
                bad("precondition_frequency", 0.5, "finite and >= 1"),
                bad("start_step", 0.0, "finite and >= 1"),
                bad("exponent", 0.0, "finite and > 0"),
                bad("momentum", 1.0, DECAY),
                *sizes_errors("max_precondition_dim", "block_size"),
                *flag_errors("one_sided", "accumulate", "nesterov"),
                ({"grafting": "lion"}, "grafting must be one of 'adam', 'rmsprop', 'adagrad', "),
                ({"eps_place": 1}, "eps_place must be one of 'relative', 'absolute', got "),
                NESTEROV,
            ),
            needs_params=True,
            shapes=MATRICES,
            spread=0.25,
            squares=True,
            exempt=OF_MATRICES | {"zero_gradient_is_a_no_op": "decay moves the parameters"},
        ),
        Row(
            name="soap",
            summary="Adam in the eigenbasis of averages of GGᵀ and GᵀG, for matrices",
            constructor=optimizers.soap,
            reference=_of_optimizer(reference.soap),
            direction=optimizers.scale_by_soap,
            direction_reference=reference.scale_by_soap,
            samples=(
                {},
                {"precondition_frequency": 1, "one_sided": True, "eps": 0.1},
                {"block_size": 2, "refresh": "eigh", "normalize": True, "eps": 0.1},
                {"refresh_before": True, "max_precondition_dim": 3, "correct_bias": False},
            ),
            hyperparams=RATE
            | {
                "b1": (0.95, 0.5),
                "b2": (0.95, 0.9),
                "eps": (1e-8, 0.1),
                "weight_decay": (0.01, 0.2),
            },
            errors=(
                bad("precondition_frequency", 0.5, "finite and >= 1"),
                *sizes_errors("max_precondition_dim", "block_size"),
                *flag_errors("one_sided", "refresh_before", "correct_bias", "normalize"),
                ({"refresh": "svd"}, "refresh must be one of 'qr', 'eigh', got refresh='svd'"),
            ),
            needs_params=True,
            shapes=MATRICES,
            spread=0.25,
            squares=True,
            exempt=OF_MATRICES | {"zero_gradient_is_a_no_op": "decay moves the parameters"},
        ),
    )
}

PASSED_ON: Mapping[str, Row] = {
    "lbfgs": Row(
        name="lbfgs",
        summary="θ ← θ − η·Pg, P the inverse Hessian by the last gradients, η by a line search",
        constructor=optimizers.lbfgs,
        direction=optimizers.scale_by_lbfgs,
        needs_params=True,
        own=False,
    ),
}
"""Optax's own optimizers under their names; the checks of rules are not made on them."""
