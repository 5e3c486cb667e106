"""What lifted transformations say of themselves while `optlab.describe` calls their `init`.

Any composition calls `init` of what it is made of, with the leaves that it passes on. So the record
is right inside `optax.chain`, `partition` and `masked`, and in wrappers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from optlab.rules._leaf import Leaf, leaf_facts
from optlab.rules._leaves import Leaves
from optlab.rules._rule import Rule


class Touch(NamedTuple):
    """A rule that touches a leaf.

    Attributes:
        rule: the rule.
        leaf: what it knows of the leaf.
    """

    rule: Rule
    leaf: Leaf


class Membership(NamedTuple):
    """The group that a parameter, or some slices of it, belongs to.

    Attributes:
        array: the path of the parameter.
        path: the same, and behind it the slices.
        shape: that of the slices.
        group: the name of the group; "" for frozen ones.
        start: the number of updates before which it is frozen.
    """

    array: str
    path: str
    shape: tuple[int, ...]
    group: str
    start: int


class Record(NamedTuple):
    """What transformations said of themselves."""

    touches: list[Touch]
    memberships: list[Sequence[Membership]]


_record: ContextVar[Record | None] = ContextVar("record", default=None)


@contextmanager
def recording() -> Iterator[Record]:
    """Collect which rules touch which leaves, and their groups, as `init` is called."""
    record = Record([], [])
    token = _record.set(record)
    try:
        yield record
    finally:
        _record.reset(token)


def record_memberships(memberships: Sequence[Membership]) -> None:
    """Note the groups of parameters, if anybody records."""
    if own := _record.get():
        own.memberships.append(memberships)


def record(rules: Sequence[Rule], leaves: Leaves, touched_by: Sequence[Sequence[bool]]) -> None:
    """Note the leaves that each rule touches, if anybody records."""
    own = _record.get()
    if own is None:
        return
    for rule, touched in zip(rules, touched_by, strict=True):
        for index in leaves.present:
            if touched[index]:
                array = leaves.arrays[index]
                own.touches.append(
                    Touch(rule, leaf_facts(rule.who, leaves.paths[index], array, rule.axes_of))
                )
