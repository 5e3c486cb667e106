"""The command line, and what it decides."""

import argparse
import importlib.util
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cases import CASES, Case
from benchmarks.contenders import BASE, PEERS, TORCH_PEERS
from benchmarks.shapes import SHAPES

PARTS = {
    "step": "time of a step, against Optax and against the memory's speed",
    "compile": "time to trace, lower and compile a step, by the number of leaves",
    "memory": "temporary memory and bytes accessed of compiled steps",
    "types": "time of a step with bfloat16 parameters, against float32",
}
DONATIONS = {"yes": (True,), "no": (False,), "both": (True, False)}
ROUNDS = 30
QUICK_ROUNDS = 3


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        parts: names in PARTS.
        cases: of the parts step and memory.
        shapes: names in SHAPES.
        peers: names in PEERS; the base is always among them.
        donations: whether memory is donated; both in turn where there are two.
        rounds: samples of each contender.
        quick: whether only to try things out.
        markdown: whether to print tables in Markdown.
        out: folder for results and pictures, which exists; None for none.
    """

    parts: tuple[str, ...]
    cases: tuple[Case, ...]
    shapes: tuple[str, ...]
    peers: tuple[str, ...]
    donations: tuple[bool, ...]
    rounds: int
    quick: bool
    markdown: bool
    out: Path | None

    @property
    def warm_ups(self) -> int:
        """Rounds before those that count."""
        return 2 if self.quick else 10

    @property
    def leaf_counts(self) -> tuple[int, ...]:
        """Numbers of leaves to compile for."""
        return (2, 4) if self.quick else (10, 100, 1000)

    @property
    def compilations(self) -> int:
        """Compilations of each contender."""
        return 1 if self.quick else 3


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Return the options; exit with one line about what is wrong with them.

    Args:
        arguments: by default those of the process.
    """
    parser = _Parser(
        prog="python -m benchmarks",
        description="Measure optlab beside Optax, hand-written steps and PyTorch.",
        epilog="Parts: " + "; ".join(f"{name}: {what}" for name, what in PARTS.items()) + ".",
    )
    default_shapes = [name for name in SHAPES if name != "tiny"]
    parser.add_argument(
        "parts", nargs="*", metavar="PART", type=_one_of(PARTS), help="what to measure (all)"
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        type=_one_of(CASES),
        default=[*CASES],
        metavar="CASE",
        help=f"of the parts step and memory: {', '.join(CASES)} (all)",
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=_one_of(SHAPES),
        metavar="SHAPES",
        help=f"whose parameters: {', '.join(SHAPES)} (all but tiny)",
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        type=_one_of(PEERS),
        metavar="PEER",
        help=f"beside {BASE}, the base of all ratios: {', '.join(PEERS)} (all)",
    )
    parser.add_argument("--rounds", type=_count, help=f"samples of each contender ({ROUNDS})")
    parser.add_argument(
        "--donate",
        type=_one_of(DONATIONS),
        default="both",
        help="whether a step may reuse the memory of its arguments (both)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes and few rounds, to try things out"
    )
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write results.json and pictures there"
    )
    given = parser.parse_args(arguments)
    if named := [name for name in given.peers or () if name in TORCH_PEERS]:
        if importlib.util.find_spec("torch") is None:
            parser.error(f"argument --peers: {named[0]} needs PyTorch, which is not installed")
        if given.donate == "no":
            parser.error(f"argument --peers: {named[0]} works in place, so --donate must not be no")
    if given.out:
        try:
            given.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"argument --out: cannot make the folder {given.out}: {error.strerror}")
        if not os.access(given.out, os.W_OK):
            parser.error(f"argument --out: cannot write to the folder {given.out}")
    return Options(
        parts=tuple(given.parts or PARTS),
        cases=tuple(CASES[name] for name in given.cases),
        shapes=tuple(given.shapes or (["tiny"] if given.quick else default_shapes)),
        peers=tuple(name for name in PEERS if name == BASE or name in (given.peers or PEERS)),
        donations=DONATIONS[given.donate],
        rounds=given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS),
        quick=given.quick,
        markdown=given.markdown,
        out=given.out,
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {message}\n")


def _one_of(names: Iterable[str]) -> Callable[[str], str]:
    """Return a check of a name. Some Pythons refuse the empty list where `choices` are given."""

    def check(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(names)}, got {text}")
        return text

    return check


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text}")
    return int(text)
