"""The loops in C: one for each distinct piece of arithmetic, for leaves of any size.

A loop takes blocks of elements that stay in the cache nearest to a core. It reads and writes each
array once, and what is to be reduced goes to a buffer on the stack first, to be added in 64 sums
side by side.

A scalar may say that outputs stay as they are: where a step is skipped, or waits for gradients.
There is another loop for that case, which leaves alone what it would write over itself.
"""

import math
from collections.abc import Sequence
from typing import Any

from optlab.native._graph import Constant, Node, Operand, Value
from optlab.native._operations import (
    HALF_PRELUDE,
    KINDS,
    MOVES,
    PRELUDE,
    Ordinary,
    constant,
    expression,
    load,
    store,
)

BLOCK, SUMS = 1024, 64


class Writer:
    """The text of one loop, and what it is to be given.

    Attributes:
        inputs: the arrays that it reads, in order.
        scalars: the scalars that XLA computes, in order.
        constants: the numbers that stand in the program, in order.
    """

    def __init__(self) -> None:
        self.inputs: list[Value] = []
        self.scalars: list[Value] = []
        self.constants: list[float] = []
        self._names: dict[int, str] = {}
        self._inner: dict[int, str] = {}
        self._numbers: dict[int, int] = {}
        self._count = 0
        self._before: list[str] = []
        self._inside: list[str] = []
        self._halves = False

    def text(
        self,
        nodes: Sequence[Node],
        outputs: Sequence[Operand],
        reductions: Sequence[tuple[Operand, int]],
        places: Sequence[Value | None],
    ) -> str:
        """Return the file of a loop.

        Args:
            nodes: the operations, each behind those that it needs.
            outputs: the values to write.
            reductions: the values to reduce, with the code of the reduction.
            places: for each output the array whose memory it may take.
        """
        self._halves |= any(value.type == "float16" for value in outputs)
        reduced: dict[Any, _Reduced] = {}
        for i, (value, code) in enumerate(reductions):
            key = (id(value), code)
            if key not in reduced:
                reduced[key] = _Reduced(i, value, code)
            reduced[key].results.append(i)
        case = _case_of_rest(nodes, outputs, places)
        loops = self._loop(nodes, outputs, [*reduced.values()], {})
        if case is not None:
            resting = [_at_rest(x, case) is y for x, y in zip(outputs, places, strict=True)]
            kept = [None if rests else x for rests, x in zip(resting, outputs, strict=True)]
            copies = []
            for i, (rests, place) in enumerate(zip(resting, places, strict=True)):
                if rests and place is not None:
                    array = self._array(place)
                    copies.append(f"if ((void *)o{i} != (void *){array})")
                    copies.append(f"for (int64_t i = begin; i < end; i++) o{i}[i] = {array}[i];")
            loop = copies
            if reduced or any(x is not None for x in kept):
                loop = [*self._loop(nodes, kept, [*reduced.values()], case), *copies]
            ((which, value),) = case.items()
            test = f"if ({self._names[which]} == {int(value)}) {{"
            loops = [test, *loop, "} else {", *loops, "}"]
        lines = [
            *self._before,
            *(f"{KINDS[x.type].memory} *const o{i} = out[{i}];" for i, x in enumerate(outputs)),
            *(line for one in reduced.values() for line in one.start),
            *loops,
            *(line for one in reduced.values() for line in one.end()),
        ]
        prelude = PRELUDE + HALF_PRELUDE * self._halves
        return f"{prelude}{_HEAD}{chr(10).join(lines)}\n}}\n"

    def _loop(
        self,
        nodes: Sequence[Node],
        outputs: Sequence[Operand | None],
        reduced: Sequence["_Reduced"],
        case: "_Case",
    ) -> list[str]:
        """Return the lines of a loop that writes the outputs but those that are None."""
        self._inner, self._inside = {}, []
        for node in nodes:
            result = node.outputs[0]
            chosen = _chosen(node, case)
            if chosen is not None:
                self._inner[id(result)] = self._operand(chosen)
                continue
            operands = [self._operand(value) for value in node.inputs]
            types = [value.type for value in node.inputs]
            text = expression(node.name, operands, types, result.type, node.params)
            assert text is not None
            if text == operands[0]:
                self._inner[id(result)] = text
                continue
            name = self._inner[id(result)] = self._name("v")
            self._inside.append(f"const {KINDS[result.type].register} {name} = {text};")
        stores = [
            f"o{i}[i] = {store(value.type, self._operand(value))};"
            for i, value in enumerate(outputs)
            if value is not None
        ]
        stores += [f"{one.buffer}[i - block] = {self._operand(one.value)};" for one in reduced]
        return [
            f"for (int64_t block = begin; block < end; block += {BLOCK}) {{",
            f"const int64_t stop = block + {BLOCK} < end ? block + {BLOCK} : end;",
            "EACH_ALONE",
            "for (int64_t i = block; i < stop; i++) {",
            *self._inside,
            *stores,
            "}",
            *(line for one in reduced for line in one.block),
            "}",
        ]

    def _name(self, letter: str) -> str:
        self._count += 1
        return f"{letter}{self._count - 1}"

    def _array(self, value: Value) -> str:
        """Return the name of an array that the loop reads."""
        if id(value) not in self._numbers:
            number = self._numbers[id(value)] = len(self.inputs)
            memory = KINDS[value.type].memory
            self._before.append(f"const {memory} *const a{number} = in[{number}];")
            self.inputs.append(value)
        return f"a{self._numbers[id(value)]}"

    def _operand(self, value: Operand) -> str:
        known = self._names.get(id(value)) or self._inner.get(id(value))
        if known is not None:
            return known
        dtype = value.type
        kind = KINDS[dtype]
        self._halves |= dtype == "float16"
        if isinstance(value, Constant):
            number = constant(value.value)
            assert number is not None
            name = f"c{len(self.constants)}"
            self._before.append(
                f"const {kind.register} {name} = ({kind.register})c[{len(self.constants)}];"
            )
            self.constants.append(number)
            return Ordinary(name) if number and math.isfinite(number) else name
        if not value.is_big:
            name = self._names[id(value)] = self._name("s")
            place = f"*(const {kind.memory} *)s[{len(self.scalars)}]"
            self._before.append(f"const {kind.register} {name} = {load(dtype, place)};")
            self.scalars.append(value)
            return name
        name = self._inner[id(value)] = self._name("x")
        element = f"{self._array(value)}[i]"
        self._inside.append(f"const {kind.register} {name} = {load(dtype, element)};")
        return name


_Case = dict[int, bool]
"""A scalar by its identity, and the value that it is taken to have; empty for none."""


def _chosen(node: Node, case: _Case) -> Operand | None:
    """Return the operand that a choice by the scalar takes in this case; None for anything else."""
    if not case or node.name != "select_n" or len(node.inputs) != 3:
        return None
    value = case.get(id(_same_as(node.inputs[0])))
    return None if value is None else node.inputs[1 + value]


def _same_as(value: Operand) -> Operand:
    """Return what has the same elements, before operations that change the shape at most."""
    while value.node is not None and value.node.name in MOVES:
        value = value.node.inputs[0]
    return value


def _at_rest(value: Operand, case: _Case) -> Operand:
    """Return the simplest value that has the same elements in this case."""
    while True:
        value = _same_as(value)
        node = value.node
        if node is None:
            return value
        if (chosen := _chosen(node, case)) is not None:
            value = chosen
        elif node.name in ("add", "add_any"):
            a, b = (_at_rest(x, case) for x in node.inputs)
            if not (_is_nothing(a) or _is_nothing(b)):
                return value
            value = b if _is_nothing(a) else a
        else:
            return value


def _is_nothing(value: Operand) -> bool:
    """Return whether a value is −0, which changes no number that it is added to."""
    number = float(value.value) if isinstance(value, Constant) and value.type != "bool" else 1.0
    return number == 0 and math.copysign(1, number) < 0


def _case_of_rest(
    nodes: Sequence[Node], outputs: Sequence[Operand], places: Sequence[Value | None]
) -> _Case | None:
    """Return the case in which most outputs are what is in their place; None if none ever is."""
    most, best = 0, None
    choices = (node.inputs[0] for node in nodes if node.name == "select_n")
    for which in {id(x): x for x in map(_same_as, choices)}.values():
        if which.type != "bool" or which.shape != () or isinstance(which, Constant):
            continue
        for value in (False, True):
            case = {id(which): value}
            pairs = zip(outputs, places, strict=True)
            count = sum(place is not None and _at_rest(x, case) is place for x, place in pairs)
            if count > most:
                most, best = count, case
    return best


_HEAD = """\
#if defined(__clang__)
#define EACH_ALONE _Pragma("clang loop vectorize(assume_safety)")
#else
#define EACH_ALONE _Pragma("GCC ivdep")
#endif
void optlab_loop(int64_t begin, int64_t end, void *const *in, void *const *out, void *const *s,
                 const double *c, double *partial) {
"""


class _Reduced:
    """The lines that reduce one value.

    Attributes:
        value: the value.
        buffer: the name of the elements of a block.
        start: the lines before the blocks.
        block: the lines after each block.
        results: the numbers of the reductions that are this one.
    """

    def __init__(self, number: int, value: Operand, code: int):
        self._how = code // 4
        kind = KINDS[value.type].register
        neutral = {0: "0", 1: "-__builtin_inf()", 2: "__builtin_inf()"}[self._how]
        if kind == "int":
            neutral = str(self._how - 1)
        self.value, self.results = value, list[int]()
        self.buffer = t = f"t{number}"
        self._sums = f"r{number}"
        self.start = [
            f"{kind} {t}[{BLOCK}];",
            f"{kind} {self._sums}[{SUMS}];",
            f"for (int j = 0; j < {SUMS}; j++) {self._sums}[j] = {neutral};",
        ]
        a, b = f"{self._sums}[j]", f"{t}[k + j]"
        step = _combined(self._how, kind, a, b)
        self.block = [
            f"for (int64_t k = stop - block; k % {SUMS}; k++) {t}[k] = {neutral};",
            f"for (int64_t k = 0; k < stop - block; k += {SUMS})",
            f"for (int j = 0; j < {SUMS}; j++) {a} = {step};",
        ]

    def end(self) -> list[str]:
        """Return the lines after the blocks."""
        first, *others = self.results
        total = f"partial[{first}]"
        step = _combined(self._how, "double", total, f"{self._sums}[j]")
        return [
            f"{total} = {self._sums}[0];",
            f"for (int j = 1; j < {SUMS}; j++) {total} = {step};",
            *(f"partial[{number}] = {total};" for number in others),
        ]


def _combined(how: int, kind: str, a: str, b: str) -> str:
    if how == 0:
        return f"{a} + {b}"
    if kind == "int":
        return f"{a} {'|' if how == 1 else '&'} {b}"
    return f"{a} {'>' if how == 1 else '<'} {b} || {a} != {a} ? {a} : {b}"
