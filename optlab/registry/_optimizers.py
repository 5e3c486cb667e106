"""The optimizers, by the names the command line knows, each with its direction."""

from collections.abc import Callable, Mapping
from typing import Any

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
