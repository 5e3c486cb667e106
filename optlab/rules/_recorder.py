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


_touches: ContextVar[list[Touch] | None] = ContextVar("touches", default=None)


@contextmanager
def recording() -> Iterator[list[Touch]]:
    """Collect which rules touch which leaves, as their `init` is called."""
    touches: list[Touch] = []
    token = _touches.set(touches)
    try:
        yield touches
    finally:
        _touches.reset(token)


def record(rules: Sequence[Rule], leaves: Leaves, touched_by: Sequence[Sequence[bool]]) -> None:
    """Note the leaves that each rule touches, if anybody records."""
    touches = _touches.get()
    if touches is None:
        return
    for rule, touched in zip(rules, touched_by, strict=True):
        for index in leaves.present:
            if touched[index]:
                array = leaves.arrays[index]
                touches.append(
                    Touch(rule, leaf_facts(rule.who, leaves.paths[index], array, rule.axes_of))
                )
