"""What of a program is computed in loops, and what XLA computes.

A result is computed in a loop if it is elementwise: each element is made of those at the same place
in arrays that are there in memory, and of scalars. So is a reduction to a scalar of something
elementwise. All such results of arrays that belong together, the parameter, the gradient and the
slots of a leaf, are one loop. But a reduction on which an element depends needs a loop of its own
before, as for a norm.

XLA computes the rest. Where that needs what is elementwise, XLA computes this anew, so that no loop
waits for another but through a reduction.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from optlab.native import _compiler
from optlab.native._code import Writer
from optlab.native._graph import Constant, Graph, Node, Operand, Value, run_node
from optlab.native._loops import Call, Leaf, compute, in_given_types
from optlab.native._operations import KINDS, OPERATIONS, constant, expression, reduction_code

LEAVES = 32
"""The most leaves of a call: XLA takes minutes to compile one with thousands of operands."""

MOST_NODES, MOST_ARRAYS = 500, 32
"""The most operations of a loop, and the most arrays that it reads."""

WORTH_A_WORD = 2**12
"""The elements from which an array that is left to XLA is reported: less takes no time."""

IN_MEMORY = {"cholesky", "cond", "conv_general_dilated", "dot_general", "eigh"}
IN_MEMORY |= {"householder_product", "lu", "qr", "scan", "sort", "svd", "triangular_solve", "while"}
"""Operations whose results are in memory anyway; XLA would compute others where they are used."""


@dataclass(eq=False)
class Region:
    """What is elementwise behind one value.

    Attributes:
        value: the value.
        nodes: the operations, each behind those that it needs.
        arrays: the arrays that they start from.
        scalars: the scalars that they use.
        blame: the name of what cannot be in a loop; None if the region can.
    """

    value: Operand
    nodes: list[Node]
    arrays: list[Value]
    scalars: list[Value]
    blame: str | None = None


@dataclass(eq=False)
class Reduction:
    """A reduction that a loop can compute.

    Attributes:
        node: the operation of the program.
        code: how the handler reduces.
        parts: the regions of what is reduced, several if arrays were joined to be reduced.
    """

    node: Node
    code: int
    parts: list[Region]


@dataclass
class Group:
    """What one loop computes."""

    outputs: list[Region] = field(default_factory=list)
    reductions: list[tuple[Region, Reduction]] = field(default_factory=list)


class Plan:
    """A program with loops.

    Args:
        graph: the program.
        places: for a result, the argument whose memory it may take.

    Attributes:
        calls: the calls of loops.
        blame: the names of operations because of which arrays are left to XLA.

    Raises:
        Unavailable: a loop cannot be compiled or loaded.
    """

    def __init__(self, graph: Graph, places: Mapping[Operand, Value]):
        self.graph = graph
        self._places = places
        self._is_elementwise: dict[Node, bool] = {}
        self.blame: set[str] = set()
        reductions = self._reductions()
        self._levels = self._find_levels(reductions, {})
        regions = self._targets()
        used = self._find_needed(regions, reductions)
        self._alone = [
            (reduction, part) for reduction in used for part in reduction.parts if not part.arrays
        ]
        self.calls = self._make_calls(self._groups(regions, used, reductions))
        self._by_level = self._steps()
        del self._is_elementwise

    def _elementwise(self, node: Node) -> bool:
        known = self._is_elementwise.get(node)
        if known is None:
            known = self._is_elementwise[node] = _is_elementwise(node)
        return known

    def _region(self, value: Operand) -> Region:
        """Return what is elementwise behind a value."""
        found, arrays, scalars = {}, {}, {}
        blame = None
        waiting: list[Operand] = [value]
        while waiting:
            one = waiting.pop()
            if isinstance(one, Constant):
                continue
            if not one.is_big:
                scalars[id(one)] = one
            elif one.node is not None and self._elementwise(one.node):
                if id(one.node) not in found:
                    found[id(one.node)] = one.node
                    waiting += one.node.inputs
            else:
                arrays[id(one)] = one
                if one.node is not None and one.node.name not in IN_MEMORY:
                    blame = one.node.name
                elif one.type not in KINDS:
                    blame = f"arrays of {one.type or 'another type'}"
        if len(found) > MOST_NODES or len(arrays) > MOST_ARRAYS:
            blame = "a long expression"
        nodes = sorted(found.values(), key=_number)
        return Region(value, nodes, list(arrays.values()), list(scalars.values()), blame)

    def _reductions(self) -> dict[Node, Reduction]:
        """Return the reductions that loops can compute."""
        found = {}
        for node in self.graph.nodes:
            operand = node.inputs[0] if node.inputs else None
            if operand is None or not operand.is_big:
                continue
            code = reduction_code(node.name, operand.type)
            if code is None or len(node.params["axes"]) != len(operand.shape):
                continue
            region = self._region(operand)
            parts = self._parts(region) if region.blame == "concatenate" else [region]
            if all(part.blame is None and (part.arrays or len(parts) > 1) for part in parts):
                found[node] = Reduction(node, code, parts)
        return found

    def _parts(self, region: Region) -> list[Region]:
        """Return the regions of the parts of an array that was joined of several."""
        if len(region.arrays) != 1:
            return [region]
        (whole,) = region.arrays
        parts = []
        for part in whole.node.inputs:
            if not part.is_big or isinstance(part, Constant):
                return [region]
            copies: dict[int, Operand] = {id(whole): part}
            for node in region.nodes:
                copy = node.on([copies.get(id(x), x) for x in node.inputs], part.shape)
                copies[id(node.outputs[0])] = copy.outputs[0]
                self._is_elementwise[copy] = True
            parts.append(self._region(copies[id(region.value)]))
        return parts

    def _find_levels(
        self, reductions: Mapping[Node, Reduction], late: Mapping[Node, int]
    ) -> dict[int, int]:
        """Return for each value how many reductions in loops come before it, one after another.

        Args:
            reductions: the reductions that loops can compute.
            late: for some of them, the level of the loop that computes them, if that is later.
        """
        levels: dict[int, int] = {}
        for node in self.graph.nodes:
            level = max((levels.get(id(x), 0) for x in node.inputs), default=0)
            if node in reductions:
                level = max(level, late.get(node, 0)) + 1
            for value in node.outputs:
                levels[id(value)] = level
        return levels

    def _level(self, region: Region) -> int:
        values = (*region.arrays, *region.scalars)
        return max((self._levels.get(id(x), 0) for x in values), default=0)

    def _targets(self) -> list[Region]:
        """Return the regions of the results that loops compute."""
        good, bad, seen = [], [], set()
        for value in self.graph.results:
            if not isinstance(value, Value) or not value.is_big or value.node is None:
                continue
            if id(value) in seen:
                continue
            seen.add(id(value))
            region = self._region(value)
            if region.nodes and region.arrays and region.blame is None:
                good.append(region)
            else:
                bad.append(region)
                if value.size >= WORTH_A_WORD:
                    self.blame.add(region.blame or value.node.name)
        # XLA computes all of a leaf or nothing: it would have to copy what a loop overwrites.
        joined = _Joined()
        for region in good:
            joined.join(region.arrays)
        left = set()
        for region in bad:
            for array in region.arrays:
                left.add(joined.of(array))
                if array.node is not None and array.node.name not in IN_MEMORY:
                    left |= {joined.of(x) for x in array.node.inputs if x.is_big}
        return [region for region in good if joined.of(region.arrays[0]) not in left]

    def _find_needed(
        self, targets: Sequence[Region], reductions: Mapping[Node, Reduction]
    ) -> list[Reduction]:
        """Find what XLA computes, and return the reductions that loops compute."""
        in_loops = {id(region.value) for region in targets}
        needed: set[int] = set()
        for region in targets:
            needed.update(map(id, (*region.arrays, *region.scalars)))
        needed.update(id(x) for x in self.graph.results if id(x) not in in_loops)
        self._nodes: list[Node] = []
        self._moved: dict[Node, _Branches] = {}
        used = []
        for node in reversed(self.graph.nodes):
            if not node.eqn.effects and not any(id(x) in needed for x in node.outputs):
                continue
            if node in reductions:
                used.append(reductions[node])
                for part in reductions[node].parts:
                    needed.update(map(id, (*part.arrays, *part.scalars)))
                continue
            self._nodes.append(node)
            operands = node.inputs
            if node.name == "cond" and not node.eqn.effects:
                self._moved[node] = _Branches(node)
                operands = self._moved[node].operands
            needed.update(map(id, operands))
        self._nodes.reverse()
        return used

    def _groups(
        self,
        targets: Sequence[Region],
        reductions: Sequence[Reduction],
        known: Mapping[Node, Reduction],
    ) -> list[tuple[int, Group]]:
        """Return what each loop computes, with its level.

        Args:
            targets: the regions of the results.
            reductions: the reductions that loops compute.
            known: all that they could.
        """
        joined = _Joined()
        for region in (*targets, *(part for one in reductions for part in one.parts)):
            if region.arrays:
                joined.join(region.arrays)
        last: dict[int, int] = defaultdict(int)
        for region in targets:
            leaf = joined.of(region.arrays[0])
            last[leaf] = max(last[leaf], self._level(region))
        # What overwrites a leaf waits for the reductions that read it. One that no loop waits for
        # waits for that loop, which then computes it along with the rest.
        early, late = self._find_early(targets, reductions), {}
        read: dict[int, set[int]] = defaultdict(set)
        for reduction in reductions:
            leaves = {joined.of(part.arrays[0]) for part in reduction.parts if part.arrays}
            leaves &= last.keys()
            level = self._levels[id(reduction.node.outputs[0])] - 1
            for leaf in leaves:
                last[leaf] = max(last[leaf], level)
            if reduction.node in early:
                read[level].update(id(x) for part in reduction.parts for x in part.arrays)
        for reduction in reductions:
            leaves = {joined.of(part.arrays[0]) for part in reduction.parts if part.arrays}
            level = self._levels[id(reduction.node.outputs[0])] - 1
            arrays = {id(x) for part in reduction.parts for x in part.arrays}
            if reduction.node in early or arrays <= read[level]:
                continue
            if leaves and leaves <= last.keys():
                late[reduction.node] = min(last[leaf] for leaf in leaves)
        self._levels = self._find_levels(known, late)
        groups: dict[tuple[int, int], Group] = defaultdict(Group)
        for region in targets:
            leaf = joined.of(region.arrays[0])
            groups[leaf, last[leaf]].outputs.append(region)
        for reduction in reductions:
            # All parts wait for the last, since XLA needs them together.
            level = self._levels[id(reduction.node.outputs[0])] - 1
            for part in (part for part in reduction.parts if part.arrays):
                groups[joined.of(part.arrays[0]), level].reductions.append((part, reduction))
        return [(level, group) for (_, level), group in groups.items()]

    def _find_early(self, targets: Sequence[Region], reductions: Sequence[Reduction]) -> set[Node]:
        """Return the reductions on which a loop depends."""
        regions = [*targets, *(part for one in reductions for part in one.parts)]
        needed = {id(x) for region in regions for x in (*region.arrays, *region.scalars)}
        own = {one.node for one in reductions}
        early = set()
        for node in reversed(self.graph.nodes):
            if any(id(x) in needed for x in node.outputs):
                if node in own:
                    early.add(node)
                else:
                    needed.update(map(id, node.inputs))
        return early

    def _make_calls(self, groups: Sequence[tuple[int, Group]]) -> list[Call]:
        """Compile the loops, and put leaves with the same loop and the same scalars together."""
        alike: dict[Any, list[Leaf]] = defaultdict(list)
        for level, group in groups:
            regions = [*group.outputs, *(region for region, _ in group.reductions)]
            found = {id(node): node for region in regions for node in region.nodes}
            nodes = sorted(found.values(), key=_number)
            writer = Writer()
            reductions = [(region.value, one.code) for region, one in group.reductions]
            outputs = [region.value for region in group.outputs]
            places = [self._place(value, regions) for value in outputs]
            text = writer.text(nodes, outputs, reductions, places)
            leaf = Leaf(
                nodes,
                writer.inputs,
                outputs,
                reductions,
                [one.node for _, one in group.reductions],
                {
                    number: i
                    for number, place in enumerate(places)
                    for i, array in enumerate(writer.inputs)
                    if array is place
                },
            )
            key = (level, text, tuple(map(id, writer.scalars)), tuple(writer.constants))
            alike[(*key, tuple(leaf.aliases.items()))].append(leaf)
            leaf.scalars = writer.scalars
        calls = []
        for (level, text, _, constants, _), leaves in alike.items():
            loop = _compiler.make_loop(text)
            for start in range(0, len(leaves), LEAVES):
                some = leaves[start : start + LEAVES]
                calls.append(Call(level, loop, some, some[0].scalars, constants))
        return calls

    def _place(self, value: Operand, regions: Sequence[Region]) -> Value | None:
        """Return the array of some regions whose memory a result takes; None if there is none."""
        place = self._places.get(value)
        if place is None or (place.shape, place.type) != (value.shape, value.type):
            return None
        read = any(array is place for region in regions for array in region.arrays)
        return place if read else None

    def _steps(self) -> list[tuple[list[Node], list[Call]]]:
        """Return, level by level, what XLA computes and the calls after it."""
        steps: list[tuple[list[Node], list[Call]]] = [
            ([], []) for _ in range(1 + max(self._levels.values(), default=0))
        ]
        for node in self._nodes:
            steps[max((self._levels[id(x)] for x in node.outputs), default=0)][0].append(node)
        for call in self.calls:
            steps[call.level][1].append(call)
        return steps

    @in_given_types
    def run(self, arguments: Sequence[Any], donated: bool) -> list[Any]:
        """Return the results of the program.

        Args:
            arguments: what the program is given.
            donated: whether results may take the memory of arguments.
        """
        values = dict(zip(map(id, self.graph.arguments), arguments, strict=True))

        def read(operand: Operand) -> Any:
            return operand.value if isinstance(operand, Constant) else values[id(operand)]

        for level, (nodes, calls) in enumerate(self._by_level):
            for node in nodes:
                moved = self._moved.get(node)
                run = run_node if moved is None else moved.run
                operands = node.inputs if moved is None else moved.operands
                results = run(node, [read(x) for x in operands])
                values.update(zip(map(id, node.outputs), results, strict=True))
            reduced: dict[Node, list[Any]] = defaultdict(list)
            for call in calls:
                arrays, sums = call.run(read, donated)
                values.update(arrays)
                for node, parts in sums:
                    reduced[node] += parts
            for reduction, part in self._alone:
                if self._levels[id(reduction.node.outputs[0])] == level + 1:
                    scalars = {id(x): values[id(x)] for x in part.scalars}
                    for node in part.nodes:
                        scalars[id(node.outputs[0])] = compute(node, scalars)
                    reduced[reduction.node].append(scalars[id(part.value)])
            for node, parts in reduced.items():
                values[id(node.outputs[0])] = _together(node, parts)
        return [read(x) for x in self.graph.results]


def _number(node: Node) -> int:
    return node.number


def _is_elementwise(node: Node) -> bool:
    if node.name not in OPERATIONS or len(node.outputs) != 1 or not node.inputs:
        return False
    (result,) = node.outputs
    if not result.is_big or result.type not in KINDS:
        return False
    for value in node.inputs:
        if value.type not in KINDS:
            return False
        if isinstance(value, Constant):
            if value.shape != () or constant(np.asarray(value.value)) is None:
                return False
        elif value.shape != () and value.size != result.size:
            return False
    if node.name == "reshape" and node.params.get("dimensions") is not None:
        return False
    if node.name == "broadcast_in_dim" and len(node.inputs) > 1:
        return False
    types = [value.type for value in node.inputs]
    names = [f"x{i}" for i in range(len(types))]
    return expression(node.name, names, types, result.type, node.params) is not None


class _Joined:
    """Values that belong together."""

    def __init__(self) -> None:
        self._above: dict[int, int] = {}

    def of(self, value: Operand) -> int:
        """Return what stands for all values that belong to this one."""
        place = id(value)
        while (above := self._above.get(place, place)) != place:
            place = above
        return place

    def join(self, values: Sequence[Operand]) -> None:
        """Say that values belong together."""
        for value in values[1:]:
            self._above[self.of(value)] = self.of(values[0])


class _Branches:
    """A choice between branches that compute their own operands.

    Where an operand of a branch is made of arguments alone, such as small arrays joined to one, it
    is made in the branch that uses it, if that is ever chosen.
    """

    def __init__(self, node: Node):
        self._node = node
        self._cones = {id(x): cone for x in node.inputs[1:] if (cone := _cone(x))}
        operands = {id(node.inputs[0]): node.inputs[0]}
        for value in node.inputs[1:]:
            cone = self._cones.get(id(value))
            sources = [value] if cone is None else [x for one in cone for x in one.inputs]
            made = set() if cone is None else {id(x) for one in cone for x in one.outputs}
            operands |= {
                id(x): x for x in sources if id(x) not in made and not isinstance(x, Constant)
            }
        self.operands = list(operands.values())

    def run(self, node: Node, operands: Sequence[Any]) -> list[Any]:
        """Choose a branch and run it."""
        if not self._cones:
            given = dict(zip(map(id, self.operands), operands, strict=True))
            return run_node(node, [_read(given, x) for x in node.inputs])

        def branch(function: Any) -> Any:
            def run(operands: Sequence[Any]) -> tuple[Any, ...]:
                values = dict(zip(map(id, self.operands), operands, strict=True))
                for cone in self._cones.values():
                    for one in cone:
                        results = run_node(one, [_read(values, x) for x in one.inputs])
                        values.update(zip(map(id, one.outputs), results, strict=True))
                return tuple(jaxpr_as_fun(function)(*(_read(values, x) for x in node.inputs[1:])))

            return run

        index = _read(dict(zip(map(id, self.operands), operands, strict=True)), node.inputs[0])
        branches = [branch(function) for function in node.params["branches"]]
        return list(jax.lax.switch(index, branches, list(operands)))


def _read(values: Mapping[int, Any], operand: Operand) -> Any:
    return operand.value if isinstance(operand, Constant) else values[id(operand)]


def _cone(value: Operand) -> list[Node] | None:
    """Return the operations that make an array of arguments alone; None if it is not so made."""
    if isinstance(value, Constant) or not value.is_big or value.node is None:
        return None
    found: dict[int, Node] = {}
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Constant) or one.node is None or not one.is_big:
            continue
        if one.node.name != "concatenate" and one.node.name not in OPERATIONS:
            return None
        if one.node.number not in found:
            found[one.node.number] = one.node
            waiting += one.node.inputs
    return [found[number] for number in sorted(found)]


_REDUCE = {"reduce_sum": jnp.sum, "reduce_max": jnp.max, "reduce_min": jnp.min}
_REDUCE |= {"reduce_and": jnp.all, "reduce_or": jnp.any}


def _together(node: Node, parts: Sequence[Any]) -> Any:
    """Return a reduction of what the parts of an array were reduced to."""
    if len(parts) == 1 and parts[0].shape == ():
        return parts[0]
    lines = [jnp.ravel(part) for part in parts]
    return _REDUCE[node.name](jnp.concatenate(lines))
