"""The optimizers that are recorded, with the frameworks' own names and arguments.

A framework's table covers every option that changes its arithmetic, the bare rule with all
defaults, and an ε large enough that the place where it is added shows.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Wave:
    """A hyperparameter that moves between two values from update to update."""

    low: float
    high: float


@dataclass(frozen=True)
class Case:
    """One optimizer.

    Attributes:
        rule: the name of its function in optlab's dialect.
        rate: the learning rate where the schedule's factor is 1.
        options: further arguments; any of them may be a `Wave`, or hold one.
        clip: what the gradients pass through first, in optlab's name, and its argument.
    """

    rule: str
    rate: float
    options: dict[str, Any] = field(default_factory=dict)
    clip: tuple[str, float] | None = None


def _case(rule, rate, clip=None, **options):
    return Case(rule, rate, options, clip)


PYTORCH = {
    "sgd": _case("sgd", 0.1),
    "sgd-momentum": _case("sgd", 0.03, momentum=0.9),
    "sgd-dampening": _case("sgd", 0.05, momentum=0.9, dampening=0.3),
    "sgd-dampening-alone": _case("sgd", 0.07, dampening=0.3),
    "sgd-nesterov": _case("sgd", 0.03, momentum=0.9, nesterov=True),
    "sgd-weight_decay": _case("sgd", 0.03, momentum=0.9, weight_decay=0.05),
    "sgd-maximize": _case(
        "sgd", 0.05, momentum=0.8, dampening=0.2, weight_decay=0.05, maximize=True
    ),
    "sgd-momentum-moving": _case("sgd", 0.03, momentum=Wave(0.85, 0.95)),
    "sgd-clip_grad_norm": _case("sgd", 0.1, clip=("clip_grad_norm", 3.0), momentum=0.5),
    "sgd-clip_grad_value": _case("sgd", 0.1, clip=("clip_grad_value", 0.5), momentum=0.5),
    "adagrad": _case("adagrad", 0.2),
    "adagrad-lr_decay": _case("adagrad", 0.3, lr_decay=0.02),
    "adagrad-weight_decay": _case("adagrad", 0.2, weight_decay=0.05),
    "adagrad-initial_accumulator_value": _case("adagrad", 0.2, initial_accumulator_value=0.5),
    "adagrad-eps": _case("adagrad", 0.2, eps=1e-2),
    "adagrad-maximize": _case("adagrad", 0.3, lr_decay=0.01, weight_decay=0.05, maximize=True),
    "rmsprop": _case("rmsprop", 0.01),
    "rmsprop-alpha": _case("rmsprop", 0.02, alpha=0.9),
    "rmsprop-eps": _case("rmsprop", 0.02, eps=1e-2),
    "rmsprop-weight_decay": _case("rmsprop", 0.01, weight_decay=0.05),
    "rmsprop-momentum": _case("rmsprop", 0.003, momentum=0.9),
    "rmsprop-centered": _case("rmsprop", 0.01, centered=True),
    "rmsprop-centered-eps": _case("rmsprop", 0.02, alpha=0.95, centered=True, eps=1e-2),
    "rmsprop-maximize": _case(
        "rmsprop", 0.004, weight_decay=0.05, momentum=0.8, centered=True, maximize=True
    ),
    "adam": _case("adam", 0.02),
    "adam-betas": _case("adam", 0.02, betas=(0.8, 0.95)),
    "adam-betas-moving": _case("adam", 0.02, betas=(Wave(0.85, 0.95), 0.999)),
    "adam-eps": _case("adam", 0.03, eps=1e-2),
    "adam-weight_decay": _case("adam", 0.02, weight_decay=0.05),
    "adam-amsgrad": _case("adam", 0.02, amsgrad=True),
    "adam-amsgrad-eps": _case("adam", 0.02, betas=(0.9, 0.9), amsgrad=True, eps=1e-2),
    "adam-maximize": _case("adam", 0.02, weight_decay=0.05, amsgrad=True, maximize=True),
    "adam-decoupled_weight_decay": _case(
        "adam", 0.02, weight_decay=0.1, decoupled_weight_decay=True
    ),
    "adamw": _case("adamw", 0.02),
    "adamw-weight_decay": _case("adamw", 0.02, betas=(0.8, 0.99), eps=1e-2, weight_decay=0.2),
    "adamw-amsgrad": _case("adamw", 0.02, betas=(0.9, 0.9), weight_decay=0.1, amsgrad=True),
    "adamw-maximize": _case("adamw", 0.02, weight_decay=0.2, maximize=True),
    "adamw-betas-moving": _case("adamw", 0.02, betas=(Wave(0.85, 0.95), 0.999)),
}

KERAS = {
    "sgd": _case("sgd", 0.1),
    "sgd-momentum": _case("sgd", 0.03, momentum=0.9),
    "sgd-nesterov": _case("sgd", 0.03, momentum=0.9, nesterov=True),
    "sgd-weight_decay": _case("sgd", 0.03, momentum=0.9, weight_decay=0.2),
    "sgd-weight_decay-alone": _case("sgd", 0.1, weight_decay=0.2),
    "sgd-clipnorm": _case("sgd", 0.1, momentum=0.5, clipnorm=1.5),
    "sgd-clipvalue": _case("sgd", 0.1, momentum=0.5, clipvalue=0.5),
    "sgd-global_clipnorm": _case("sgd", 0.1, momentum=0.5, global_clipnorm=3.0),
    "adagrad": _case("adagrad", 0.2),
    "adagrad-initial_accumulator_value": _case("adagrad", 0.2, initial_accumulator_value=1.0),
    "adagrad-initial_accumulator_value-zero": _case("adagrad", 0.2, initial_accumulator_value=0.0),
    "adagrad-epsilon": _case("adagrad", 0.2, initial_accumulator_value=0.001, epsilon=1e-2),
    "adagrad-weight_decay": _case("adagrad", 0.2, weight_decay=0.05),
    "adagrad-global_clipnorm": _case("adagrad", 0.2, global_clipnorm=3.0),
    "rmsprop": _case("rmsprop", 0.01),
    "rmsprop-rho": _case("rmsprop", 0.01, rho=0.99),
    "rmsprop-momentum": _case("rmsprop", 0.003, momentum=0.9),
    "rmsprop-epsilon": _case("rmsprop", 0.02, epsilon=1e-2),
    "rmsprop-centered": _case("rmsprop", 0.01, centered=True),
    "rmsprop-centered-momentum": _case(
        "rmsprop", 0.005, rho=0.95, momentum=0.8, epsilon=1e-2, centered=True
    ),
    "rmsprop-weight_decay": _case("rmsprop", 0.01, weight_decay=0.2),
    "rmsprop-clipvalue": _case("rmsprop", 0.01, clipvalue=0.5),
    "adam": _case("adam", 0.02),
    "adam-betas": _case("adam", 0.02, beta_1=0.8, beta_2=0.95),
    "adam-epsilon": _case("adam", 0.03, epsilon=1e-2),
    "adam-amsgrad": _case("adam", 0.02, amsgrad=True),
    "adam-amsgrad-epsilon": _case("adam", 0.02, beta_2=0.9, amsgrad=True, epsilon=1e-2),
    "adam-weight_decay": _case("adam", 0.02, weight_decay=0.2),
    "adam-clipnorm": _case("adam", 0.02, clipnorm=1.5),
    "adamw": _case("adamw", 0.02),
    "adamw-weight_decay": _case(
        "adamw", 0.02, weight_decay=0.2, beta_1=0.8, beta_2=0.99, epsilon=1e-2
    ),
    "adamw-amsgrad": _case("adamw", 0.02, weight_decay=0.1, beta_2=0.9, amsgrad=True),
    "adamw-global_clipnorm": _case("adamw", 0.02, global_clipnorm=3.0),
    "lamb": _case("lamb", 0.01),
    "lamb-epsilon": _case("lamb", 0.01, beta_1=0.8, beta_2=0.95, epsilon=1e-2),
    "lamb-weight_decay": _case("lamb", 0.01, weight_decay=0.5),
    "lamb-global_clipnorm": _case("lamb", 0.01, global_clipnorm=3.0),
}

OPTAX = {
    "sgd": _case("sgd", 0.1),
    "sgd-momentum": _case("sgd", 0.03, momentum=0.9),
    "sgd-momentum-moving": _case("sgd", 0.03, momentum=Wave(0.85, 0.95)),
    "sgd-nesterov": _case("sgd", 0.03, momentum=0.9, nesterov=True),
    "sgd-clip_by_global_norm": _case("sgd", 0.1, clip=("clip_by_global_norm", 3.0), momentum=0.5),
    "sgd-clip": _case("sgd", 0.1, clip=("clip", 0.5), momentum=0.5),
    "adagrad": _case("adagrad", 0.2),
    "adagrad-initial_accumulator_value": _case("adagrad", 0.2, initial_accumulator_value=1.0),
    "adagrad-initial_accumulator_value-zero": _case("adagrad", 0.2, initial_accumulator_value=0.0),
    "adagrad-eps": _case("adagrad", 0.2, initial_accumulator_value=0.001, eps=1e-2),
    "rmsprop": _case("rmsprop", 0.01),
    "rmsprop-decay": _case("rmsprop", 0.01, decay=0.99),
    "rmsprop-eps": _case("rmsprop", 0.02, eps=1e-2),
    "rmsprop-eps_in_sqrt": _case("rmsprop", 0.02, eps=1e-2, eps_in_sqrt=False),
    "rmsprop-initial_scale": _case("rmsprop", 0.02, initial_scale=1.0),
    "rmsprop-centered": _case("rmsprop", 0.01, centered=True),
    "rmsprop-centered-eps_in_sqrt": _case(
        "rmsprop", 0.02, decay=0.95, eps=1e-2, eps_in_sqrt=False, centered=True
    ),
    "rmsprop-momentum": _case("rmsprop", 0.003, momentum=0.9),
    "rmsprop-nesterov": _case("rmsprop", 0.003, momentum=0.9, nesterov=True),
    "rmsprop-bias_correction": _case("rmsprop", 0.02, decay=0.99, bias_correction=True),
    "rmsprop-bias_correction-eps_in_sqrt": _case(
        "rmsprop", 0.02, decay=0.99, eps=1e-2, eps_in_sqrt=False, bias_correction=True
    ),
    # A corrected variance is 0 at the first update, 0/0 but for rounding, unless it starts larger
    # than all squares that follow.
    "rmsprop-centered-bias_correction": _case(
        "rmsprop",
        0.01,
        decay=0.8,
        initial_scale=1e10,
        centered=True,
        momentum=0.5,
        bias_correction=True,
    ),
    "adam": _case("adam", 0.02),
    "adam-betas": _case("adam", 0.02, b1=0.8, b2=0.95),
    "adam-b1-moving": _case("adam", 0.02, b1=Wave(0.85, 0.95)),
    "adam-eps": _case("adam", 0.03, eps=1e-2),
    "adam-eps_root": _case("adam", 0.03, eps_root=1e-4),
    "adam-nesterov": _case("adam", 0.02, nesterov=True),
    "adamw": _case("adamw", 0.02),
    "adamw-weight_decay": _case("adamw", 0.02, b1=0.8, b2=0.99, eps=1e-2, weight_decay=0.2),
    "adamw-weight_decay-moving": _case("adamw", 0.02, weight_decay=Wave(0.0, 0.3)),
    "adamw-eps_root": _case("adamw", 0.02, eps_root=1e-4, weight_decay=0.05),
    "adamw-mask": _case(
        "adamw",
        0.02,
        weight_decay=0.2,
        mask={"layer.weight": True, "layer.bias": False, "scale": False},
    ),
    "adamw-nesterov": _case("adamw", 0.02, weight_decay=0.1, nesterov=True),
    "lars": _case("lars", 2.0),
    "lars-weight_decay": _case(
        "lars", 0.5, weight_decay=0.1, trust_coefficient=0.01, eps=1e-2, momentum=0.5, nesterov=True
    ),
    "lars-masks": _case(
        "lars",
        0.5,
        weight_decay=0.1,
        weight_decay_mask={"layer.weight": True, "layer.bias": True, "scale": False},
        trust_coefficient=0.01,
        trust_ratio_mask={"layer.weight": True, "layer.bias": False, "scale": True},
        momentum=0.5,
    ),
    "lamb": _case("lamb", 0.01),
    "lamb-weight_decay": _case("lamb", 0.01, b1=0.8, b2=0.95, eps=1e-2, weight_decay=0.5),
}

TIMM = {
    "lars": _case("lars", 0.1),
    "lars-momentum": _case("lars", 1.0, momentum=0.9, weight_decay=0.05),
    "lars-dampening": _case("lars", 3.0, momentum=0.8, dampening=0.3, weight_decay=0.05),
    "lars-nesterov": _case("lars", 2.0, momentum=0.9, nesterov=True, weight_decay=0.05),
    "lars-trust_coeff": _case("lars", 1.0, weight_decay=0.2, trust_coeff=0.01, eps=1e-2),
    "lars-trust_clip": _case(
        "lars", 0.01, momentum=0.5, weight_decay=0.2, trust_coeff=0.02, trust_clip=True
    ),
    "lars-always_adapt": _case("lars", 3.0, momentum=0.5, always_adapt=True),
    "lamb": _case("lamb", 0.01),
    "lamb-betas": _case("lamb", 0.01, betas=(0.8, 0.95), eps=1e-2),
    "lamb-betas-moving": _case("lamb", 0.01, betas=(Wave(0.85, 0.95), 0.999)),
    "lamb-bias_correction": _case("lamb", 0.01, bias_correction=False),
    "lamb-weight_decay": _case("lamb", 0.01, weight_decay=0.5),
    "lamb-weight_decay-zero": _case("lamb", 0.01, weight_decay=0.0),
    "lamb-grad_averaging": _case("lamb", 0.01, grad_averaging=False),
    "lamb-max_grad_norm": _case("lamb", 0.01, max_grad_norm=None),
    "lamb-trust_clip": _case("lamb", 0.02, trust_clip=True),
    "lamb-always_adapt": _case("lamb", 0.01, weight_decay=0.0, always_adapt=True),
    "lamb-decoupled_decay": _case("lamb", 0.01, weight_decay=0.5, decoupled_decay=True),
}

CASES = {"pytorch": PYTORCH, "keras": KERAS, "optax": OPTAX, "timm": TIMM}
