"""The loops in C: one for each distinct piece of arithmetic, for leaves of any size.

A loop takes blocks of elements that stay in the cache nearest to a core. It reads and writes each
array once, and what is to be reduced goes to a buffer on the stack first, to be added in 64 sums
side by side.
"""

from collections.abc import Sequence

from optlab.native._graph import Constant, Node, Operand, Value
from optlab.native._operations import (
    HALF_PRELUDE,
    KINDS,
    PRELUDE,
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
        self._count = 0
        self._before: list[str] = []
        self._inside: list[str] = []
        self._halves = False

    def text(
        self,
        nodes: Sequence[Node],
        outputs: Sequence[Operand],
        reductions: Sequence[tuple[Operand, int]],
    ) -> str:
        """Return the file of a loop.

        Args:
            nodes: the operations, each behind those that it needs.
            outputs: the values to write.
            reductions: the values to reduce, with the code of the reduction.
        """
        for node in nodes:
            operands = [self._operand(value) for value in node.inputs]
            types = [value.type for value in node.inputs]
            result = node.outputs[0]
            text = expression(node.name, operands, types, result.type, node.params)
            assert text is not None
            if text == operands[0]:
                self._names[id(result)] = text
                continue
            name = self._name(result, "v")
            self._inside.append(f"const {KINDS[result.type].register} {name} = {text};")
        self._halves |= any(value.type == "float16" for value in outputs)
        stores = [
            f"o{i}[i] = {store(value.type, self._operand(value))};"
            for i, value in enumerate(outputs)
        ]
        stores += [
            f"t{i}[i - block] = {self._operand(value)};" for i, (value, _) in enumerate(reductions)
        ]
        arrays = [
            f"{KINDS[value.type].memory} *const o{i} = out[{i}];" for i, value in enumerate(outputs)
        ]
        reduced = [_Reduced(i, value, code) for i, (value, code) in enumerate(reductions)]
        lines = [
            *self._before,
            *arrays,
            *(line for one in reduced for line in one.start),
            f"for (int64_t block = begin; block < end; block += {BLOCK}) {{",
            f"const int64_t stop = block + {BLOCK} < end ? block + {BLOCK} : end;",
            "EACH_ALONE",
            "for (int64_t i = block; i < stop; i++) {",
            *self._inside,
            *stores,
            "}",
            *(line for one in reduced for line in one.block),
            "}",
            *(line for one in reduced for line in one.end),
        ]
        prelude = PRELUDE + HALF_PRELUDE * self._halves
        return f"{prelude}{_HEAD}{chr(10).join(lines)}\n}}\n"

    def _name(self, value: Operand, letter: str) -> str:
        self._names[id(value)] = name = f"{letter}{self._count}"
        self._count += 1
        return name

    def _operand(self, value: Operand) -> str:
        if id(value) in self._names:
            return self._names[id(value)]
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
            return name
        if not value.is_big:
            name = self._name(value, "s")
            place = f"*(const {kind.memory} *)s[{len(self.scalars)}]"
            self._before.append(f"const {kind.register} {name} = {load(dtype, place)};")
            self.scalars.append(value)
            return name
        name = self._name(value, "x")
        number = len(self.inputs)
        self._before.append(f"const {kind.memory} *const a{number} = in[{number}];")
        self._inside.append(f"const {kind.register} {name} = {load(dtype, f'a{number}[i]')};")
        self.inputs.append(value)
        return name


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
    """The lines that reduce one value."""

    def __init__(self, number: int, value: Operand, code: int):
        how = code // 4
        kind = KINDS[value.type].register
        neutral = {0: "0", 1: "-__builtin_inf()", 2: "__builtin_inf()"}[how]
        if kind == "int":
            neutral = str(how - 1)
        t, r = f"t{number}", f"r{number}"
        self.start = [
            f"{kind} {t}[{BLOCK}], {r}[{SUMS}];",
            f"for (int j = 0; j < {SUMS}; j++) {r}[j] = {neutral};",
        ]
        a, b = f"{r}[j]", f"{t}[k + j]"
        step = _combined(how, a, b)
        self.block = [
            f"for (int64_t k = stop - block; k % {SUMS}; k++) {t}[k] = {neutral};",
            f"for (int64_t k = 0; k < stop - block; k += {SUMS})",
            f"for (int j = 0; j < {SUMS}; j++) {a} = {step};",
        ]
        total = f"partial[{number}]"
        self.end = [
            f"{total} = {r}[0];",
            f"for (int j = 1; j < {SUMS}; j++) {total} = {_combined(how, total, a)};",
        ]


def _combined(how: int, a: str, b: str) -> str:
    if how == 0:
        return f"{a} + {b}"
    return f"{a} {'>' if how == 1 else '<'} {b} || {a} != {a} ? {a} : {b}"
