"""The state of a rule: a NamedTuple whose type knows the rule's hyperparameters and their domains.

The arrays of a state are its leaves; names and domains belong to its type. They therefore take part
in every state, pickled, restored or mapped over, and in none of its arrays.
"""

import contextlib
import functools
import re
import zlib
from collections import namedtuple
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import jax
import optax

from optlab._checks import Domain

State = TypeVar("State", bound=tuple)


class Declaration(NamedTuple):
    """What the type of a state says of one hyperparameter.

    Attributes:
        name: as the constructor calls it.
        domain: the values that it may take.
        has_product: whether the state holds Σ log β of it.
    """

    name: str
    domain: Domain
    has_product: bool = False


class RuleState:
    """What the states of all rules have in common.

    Attributes:
        kind: the name of the rule, such as "scale_by_adam".
        declarations: its hyperparameters, in the order in which `hyperparams` holds them.
        readable: further scalars of the state that `optlab.hyperparams` reads, with their domains.
    """

    __slots__ = ()
    kind: str
    declarations: tuple[Declaration, ...]
    readable: tuple[tuple[str, Domain], ...]


def is_rule_state(node: Any) -> bool:
    """Whether a node of a tree is the state of one rule."""
    return isinstance(node, RuleState)


@functools.cache
def state_type(
    kind: str,
    fields: tuple[str, ...],
    declarations: tuple[Declaration, ...],
    readable: tuple[tuple[str, Domain], ...] = (),
) -> type:
    """Return the type of a rule's state; the same arguments give the same type."""
    name = "".join(part.capitalize() for part in re.split(r"\W|_", kind)) + "State"
    if not name.isidentifier():  # it begins with a digit
        name = "_" + name
    base = namedtuple(name, fields)
    new = type(
        name,
        (RuleState, base),
        {
            "__slots__": (),
            "__module__": __name__,
            "__doc__": f"State of `{kind}`: {', '.join(fields)}.",
            "__reduce__": lambda self: (
                _rebuilt,
                (kind, fields, declarations, readable, tuple(self)),
            ),
            "kind": kind,
            "declarations": declarations,
            "readable": readable,
        },
    )
    # Types of one name can differ in their fields and declarations, whose digest tells them apart.
    digest = zlib.crc32(repr((fields, declarations, readable)).encode())
    return exportable(f"{kind}.{digest:08x}")(new)


def _rebuilt(
    kind: str,
    fields: tuple[str, ...],
    declarations: tuple[Declaration, ...],
    readable: tuple[tuple[str, Domain], ...],
    values: Iterable[Any],
) -> Any:
    """Return a state from what a pickle holds of it."""
    return state_type(kind, fields, declarations, readable)(*values)


def exportable(name: str) -> Callable[[type[State]], type[State]]:
    """Let `jax.export` serialize functions of a state; returns a decorator of the state's class."""

    def register(state: type[State]) -> type[State]:
        jax.export.register_namedtuple_serialization(state, serialized_name=f"optlab.{name}")
        return state

    return register


with contextlib.suppress(ValueError):  # something else has registered it
    # It stands in a state where a leaf has no slot.
    jax.export.register_namedtuple_serialization(
        optax.MaskedNode, serialized_name="optax.MaskedNode"
    )
