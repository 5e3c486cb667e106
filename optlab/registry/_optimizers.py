"""The optimizers, by the names the command line knows."""

from collections.abc import Callable, Mapping
from typing import Any

from optlab import optimizers, reference
from optlab.registry._row import Arrays, Row, TreeReference, decay_errors, number_errors

# Shared with the directions: two values of each hyperparameter, and samples of the options.
RATE = {"learning_rate": (0.1, 0.05)}
MOMENTUM = {"momentum": (0.9, 0.5), "dampening": (0.0, 0.5)}
ADAGRAD = {"eps": (1e-8, 0.1)}
RMSPROP = {"decay": (0.9, 0.99), "eps": (1e-8, 0.1)}
ADAM = {"b1": (0.9, 0.5), "b2": (0.999, 0.9), "eps": (1e-8, 0.1), "eps_root": (0.0, 0.1)}

MOMENTUM_SAMPLES = ({}, {"nesterov": True}, {"dampening": 0.3, "nesterov": True})
ADAGRAD_SAMPLES = (
    {},
    {"initial_accumulator_value": 0.1, "eps": 0.01},
    {"eps_in_sqrt": True, "eps": 0.01},
    {"compensated": True},
)
RMSPROP_SAMPLES = (
    {},
    {"eps": 1e-3, "eps_in_sqrt": True, "initial_scale": 1.0},
    {"decay": 0.99, "centered": True, "eps": 1e-3},
    {"centered": True, "eps": 1e-3, "eps_in_sqrt": True},
    {"bias_correction": True, "decay": 0.99},
)
ADAM_SAMPLES = (
    {},
    {"nesterov": True},
    {"amsgrad": True, "b2": 0.9},
    {"b1": 0.0, "b2": 0.5, "eps": 0.1, "eps_root": 0.01},
)


def _of_optimizer(rule: Callable[..., Any]) -> TreeReference:
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
            errors=(
                *number_errors("learning_rate"),
                ({"nesterov": True}, "nesterov needs momentum, got momentum=None"),
                ({"dampening": 0.1}, "dampening needs momentum, got momentum=None"),
            ),
        ),
        Row(
            name="momentum",
            summary="v ← βv + g; θ ← θ − αv (heavy ball)",
            constructor=optimizers.sgd,
            reference=_of_optimizer(reference.sgd),
            fixed={"momentum": 0.9},
            samples=MOMENTUM_SAMPLES,
            hyperparams=RATE | MOMENTUM,
            errors=(*number_errors("learning_rate"), *decay_errors("momentum", "dampening")),
        ),
        Row(
            name="adagrad",
            summary="s ← s + g²; θ ← θ − αg/(√s + ε)",
            constructor=optimizers.adagrad,
            reference=_of_optimizer(reference.adagrad),
            samples=ADAGRAD_SAMPLES,
            hyperparams=RATE | ADAGRAD,
            errors=number_errors("learning_rate", "eps", "initial_accumulator_value"),
        ),
        Row(
            name="rmsprop",
            summary="s ← βs + (1−β)g²; θ ← θ − αg/(√s + ε)",
            constructor=optimizers.rmsprop,
            reference=_of_optimizer(reference.rmsprop),
            samples=(
                {},
                {"momentum": 0.9},
                {"momentum": 0.8, "nesterov": True, "centered": True, "eps": 1e-3},
            ),
            hyperparams=RATE | RMSPROP | {"momentum": (0.9, 0.5)},
            errors=(
                *number_errors("learning_rate", "eps", "initial_scale"),
                *decay_errors("decay", "momentum"),
                ({"nesterov": True}, "nesterov needs momentum, got momentum=None"),
            ),
        ),
        Row(
            name="adam",
            summary="m, v averages of g, g², unbiased; θ ← θ − αm̂/(√v̂ + ε)",
            constructor=optimizers.adam,
            reference=_of_optimizer(reference.adam),
            samples=({}, {"nesterov": True, "amsgrad": True}),
            hyperparams=RATE | ADAM,
            errors=(
                *number_errors("learning_rate", "eps", "eps_root"),
                *decay_errors("b1", "b2"),
                ({"mu_dtype": int}, "mu_dtype must be a floating-point type or None"),
            ),
        ),
        Row(
            name="adamw",
            summary="θ ← θ − α(m̂/(√v̂ + ε) + λθ), decay decoupled",
            constructor=optimizers.adamw,
            reference=_of_optimizer(reference.adamw),
            samples=({}, {"weight_decay": 0.3, "amsgrad": True}),
            hyperparams=RATE | ADAM | {"weight_decay": (0.01, 0.2)},
            errors=(
                *number_errors("learning_rate", "eps", "eps_root", "weight_decay"),
                *decay_errors("b1", "b2"),
            ),
            needs_params=True,
            exempt={"zero_gradient_is_a_no_op": "decay moves the parameters"},
        ),
    )
}
