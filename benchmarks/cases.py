"""The cases: every rule alone, and chains of rules that are common in practice.

A case is a rule, optionally with gradients clipped by their global norm and with an average of the
parameters. This determines the fewest bytes that a step has to move. The parameters and each array
of state are read and written once; the gradients are read once. A global norm must be known before
any gradient is used, so it reads the gradients once more. An average is one more array of state.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optlab
from benchmarks import by_hand
from benchmarks.by_hand import Init, Step, Tree
from benchmarks.settings import (
    ADAGRAD_EPS,
    ADAGRAD_START,
    ADAM_EPS,
    AVERAGE_DECAY,
    B1,
    B2,
    LEARNING_RATE,
    MAX_NORM,
    MOMENTUM,
    RMSPROP_DECAY,
    RMSPROP_EPS,
    WEIGHT_DECAY,
)

Constructor = Callable[..., optax.GradientTransformation]


@dataclass(frozen=True)
class TorchRule:
    """A class of `torch.optim` by name, so that PyTorch is imported only if it is measured.

    Attributes:
        name: the name of the class.
        options: arguments of its constructor, without the learning rate.
        fused: whether it has a fused form.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    fused: bool = True


@dataclass(frozen=True)
class Rule:
    """One rule in the form of each contender.

    Attributes:
        slots: the number of state arrays of the parameters' size.
        optlab: optlab's constructor, which accepts further options.
        optax: Optax's constructor, which accepts further options.
        torch: PyTorch's form; None if PyTorch's arithmetic differs.
    """

    slots: int
    optlab: Constructor
    optax: Constructor
    torch: TorchRule | None


class Functions(NamedTuple):
    """A contender as pure functions of JAX.

    `step` returns (params, state) in the order of its donated arguments. In another order, JAX
    would pair donated buffers with outputs of the same shape that are computed from other inputs,
    and XLA would have to copy all of them.

    Attributes:
        init: params → state.
        step: (params, state, gradients) → (params, state).
        average: state → the average of the parameters; None without an average.
    """

    init: Init
    step: Step
    average: Callable[[Tree], Tree] | None


@dataclass(frozen=True)
class Case:
    """A rule, optionally with clipping and with an average.

    Attributes:
        rule: a name in RULES.
        clip: whether the gradients are clipped to a global norm of MAX_NORM.
        average: whether the state holds an exponential moving average of the parameters.
    """

    rule: str
    clip: bool = False
    average: bool = False

    @property
    def name(self) -> str:
        return "-".join(["clip"] * self.clip + [self.rule] + ["average"] * self.average)

    @property
    def reads(self) -> int:
        """The number of arrays of the parameters' size that a step has to read."""
        return 2 + RULES[self.rule].slots + self.clip + self.average

    @property
    def writes(self) -> int:
        """The number of arrays of the parameters' size that a step has to write."""
        return 1 + RULES[self.rule].slots + self.average

    @property
    def torch(self) -> TorchRule | None:
        return RULES[self.rule].torch

    def functions(self, peer: str, **options: Any) -> Functions:
        """Return the case in the form of a peer of JAX_PEERS or NATIVE_PEERS.

        Args:
            peer: the contender.
            options: further options for the rule's constructor in optlab or Optax.
        """
        makers = {
            "optlab": self._optlab,
            "optax": self._optax,
            "by-hand": self._by_hand,
            "native": partial(self._optlab, native=True),
            "optax-native": partial(self._optax, native=True),
        }
        return makers[peer](**options)

    def _optlab(self, native: bool = False, **options: Any) -> Functions:
        members = [RULES[self.rule].optlab(**options)]
        if self.clip:
            members.insert(0, optlab.clip_by_global_norm(MAX_NORM))
        if self.average:
            members.append(optlab.params_ema(AVERAGE_DECAY))
        return chained(members, optlab.averaged_params if self.average else None, native)

    def _optax(self, native: bool = False, **options: Any) -> Functions:
        members = [RULES[self.rule].optax(**options)]
        if self.clip:
            members.insert(0, optax.clip_by_global_norm(MAX_NORM))
        if self.average:
            members.append(_params_average(AVERAGE_DECAY))
        average = (lambda state: state[-1].average) if self.average else None
        return chained(members, average, native)

    def _by_hand(self) -> Functions:
        init, step = by_hand.RULES[self.rule]
        if self.clip:
            step = by_hand.clipped(step)
        if self.average:
            init, step = by_hand.averaged(init, step)
        return Functions(init, step, (lambda state: state["average"]) if self.average else None)


def chained(
    members: list[optax.GradientTransformation],
    average: Callable[[Tree], Tree] | None = None,
    native: bool = False,
) -> Functions:
    """Return a chain of transformations as functions.

    Args:
        members: the transformations.
        average: state → the average of the parameters; None without an average.
        native: whether `optlab.native.step` makes the step.
    """
    tx = optax.chain(*members) if len(members) > 1 else members[0]
    if native:
        in_loops = optlab.native.step(tx)
        return Functions(tx.init, lambda params, state, g: in_loops(g, state, params), average)

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return Functions(tx.init, step, average)


class ParamsAverageState(NamedTuple):
    """The average, with the structure of the parameters."""

    average: Tree


def _params_average(decay: float) -> optax.GradientTransformation:
    """Average the parameters as users of Optax do, because Optax itself averages only updates."""

    def init(params):
        return ParamsAverageState(jax.tree.map(jnp.copy, params))

    def update(updates, state, params):
        new_params = optax.apply_updates(params, updates)
        average = optax.incremental_update(new_params, state.average, 1 - decay)
        return updates, ParamsAverageState(average)

    return optax.GradientTransformation(init, update)


_ADAM = {"b1": B1, "b2": B2, "eps": ADAM_EPS}
_RMSPROP = {"decay": RMSPROP_DECAY, "eps": RMSPROP_EPS, "eps_in_sqrt": True}
_ADAGRAD = {"initial_accumulator_value": ADAGRAD_START, "eps": ADAGRAD_EPS}
_TORCH_ADAM = {"betas": (B1, B2), "eps": ADAM_EPS}
_TORCH_RMSPROP = {"alpha": RMSPROP_DECAY, "eps": RMSPROP_EPS**0.5}

RULES = {
    "sgd": Rule(
        slots=0,
        optlab=partial(optlab.sgd, LEARNING_RATE),
        optax=partial(optax.sgd, LEARNING_RATE),
        torch=TorchRule("SGD"),
    ),
    "momentum": Rule(
        slots=1,
        optlab=partial(optlab.sgd, LEARNING_RATE, momentum=MOMENTUM),
        optax=partial(optax.sgd, LEARNING_RATE, momentum=MOMENTUM),
        torch=TorchRule("SGD", {"momentum": MOMENTUM}),
    ),
    "nesterov": Rule(
        slots=1,
        optlab=partial(optlab.sgd, LEARNING_RATE, momentum=MOMENTUM, nesterov=True),
        optax=partial(optax.sgd, LEARNING_RATE, momentum=MOMENTUM, nesterov=True),
        torch=TorchRule("SGD", {"momentum": MOMENTUM, "nesterov": True}),
    ),
    "adagrad": Rule(
        slots=1,
        optlab=partial(optlab.adagrad, LEARNING_RATE, **_ADAGRAD, eps_in_sqrt=True),
        optax=partial(optax.adagrad, LEARNING_RATE, **_ADAGRAD),
        torch=TorchRule("Adagrad", _ADAGRAD),
    ),
    "rmsprop": Rule(
        slots=1,
        optlab=partial(optlab.rmsprop, LEARNING_RATE, **_RMSPROP),
        optax=partial(optax.rmsprop, LEARNING_RATE, **_RMSPROP),
        torch=TorchRule("RMSprop", _TORCH_RMSPROP, fused=False),
    ),
    "centered-rmsprop": Rule(
        slots=2,
        optlab=partial(optlab.rmsprop, LEARNING_RATE, **_RMSPROP, centered=True),
        optax=partial(optax.rmsprop, LEARNING_RATE, **_RMSPROP, centered=True),
        torch=TorchRule("RMSprop", _TORCH_RMSPROP | {"centered": True}, fused=False),
    ),
    "adam": Rule(
        slots=2,
        optlab=partial(optlab.adam, LEARNING_RATE, **_ADAM),
        optax=partial(optax.adam, LEARNING_RATE, **_ADAM),
        torch=TorchRule("Adam", _TORCH_ADAM),
    ),
    "amsgrad": Rule(
        slots=3,
        optlab=partial(optlab.adam, LEARNING_RATE, **_ADAM, amsgrad=True),
        optax=partial(optax.amsgrad, LEARNING_RATE, **_ADAM),
        torch=TorchRule("Adam", _TORCH_ADAM | {"amsgrad": True}),
    ),
    "nadam": Rule(
        slots=2,
        optlab=partial(optlab.adam, LEARNING_RATE, **_ADAM, nesterov=True),
        optax=partial(optax.nadam, LEARNING_RATE, **_ADAM),
        torch=None,  # PyTorch's momentum follows its own schedule
    ),
    "adamw": Rule(
        slots=2,
        optlab=partial(optlab.adamw, LEARNING_RATE, **_ADAM, weight_decay=WEIGHT_DECAY),
        optax=partial(optax.adamw, LEARNING_RATE, **_ADAM, weight_decay=WEIGHT_DECAY),
        torch=TorchRule("AdamW", _TORCH_ADAM | {"weight_decay": WEIGHT_DECAY}),
    ),
}

CASES = {
    case.name: case
    for case in (
        *map(Case, RULES),
        Case("momentum", clip=True),
        Case("adamw", clip=True),
        Case("adamw", clip=True, average=True),
    )
}

ACCUMULATED = 4
"""The micro-batches of a step of `accumulate`."""


def wrapped(name: str) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Return AdamW with gradients clipped by their norm, within a wrapper and without one.

    Args:
        name: a name in WRAPPERS.
    """
    clip, rule = optlab.clip_by_global_norm(MAX_NORM), RULES["adamw"].optlab()
    plain = optax.chain(clip, rule)
    if name == "monitor":
        return optlab.monitor(rule, clipping=clip, groups=lambda path: "all"), plain
    return WRAPPERS[name](plain), plain


WRAPPERS = {
    "accumulate": partial(optlab.accumulate, every=ACCUMULATED),
    "dynamic_loss_scale": partial(optlab.dynamic_loss_scale, initial_scale=1.0, max_scale=1.0),
    "monitor": optlab.monitor,
    "skip_nonfinite": optlab.skip_nonfinite,
}
