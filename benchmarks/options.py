"""The command line, and the options of a measurement."""

import argparse
import importlib.util
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cases import CASES, Case
from benchmarks.contenders import BASE, PEERS, TORCH_PEERS
from benchmarks.shapes import SHAPES
from benchmarks.timing import Clock

PARTS = {
    "step": "time of a step, against Optax and against the memory's speed",
    "compile": "time to trace, lower and compile a step, by the number of leaves",
    "memory": "temporary memory and bytes accessed of compiled steps",
    "types": "time of a step with bfloat16 parameters, against float32",
    "matrices": "time, first step and memory of Muon, Shampoo and SOAP, against Optax's Muon",
    "small": "time of a step on 10⁴ parameters, compiled and called from Python; time to import",
}
"""What runs by default, and what it measures."""

ACCELERATOR = "accelerator"
"""The part that runs alone, with everything chosen."""

DONATIONS = {"yes": (True,), "no": (False,), "both": (True, False)}
ROUNDS = 30
QUICK_ROUNDS = 3
MINUTES = 17.0
"""The time of a run in which nothing is chosen. A case that has begun ends, and every part measures
one, so that the run takes up to two minutes more on a slow machine."""

FIRST = ("adamw", "clip-adamw", "clip-adamw-average", "sgd")
"""The cases that are measured first where time is limited."""


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        parts: names in PARTS.
        cases: the cases of the parts step and memory.
        shapes: names in SHAPES.
        peers: names in PEERS; the base is always among them.
        donations: whether memory is donated; if there are two values, both are measured.
        rounds: samples of each contender.
        quick: whether to measure only briefly, to try things out.
        markdown: whether to print tables in Markdown.
        out: an existing folder for results and pictures; None for none.
        clock: the time that is left.
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
    clock: Clock = field(default_factory=Clock)

    @property
    def rounds_text(self) -> str:
        """The number of rounds for titles, the most where time is limited."""
        return f"up to {self.rounds}" if self.clock.is_limited else str(self.rounds)

    @property
    def warm_ups(self) -> int:
        """The number of rounds before those that count."""
        return 2 if self.quick else 10

    @property
    def leaf_counts(self) -> tuple[int, ...]:
        """The numbers of leaves to compile for."""
        return (2, 4) if self.quick else (10, 100, 1000)

    @property
    def matrix_rounds(self) -> int:
        """The number of samples, of ten steps each, of the part matrices."""
        return max(1, self.rounds // 10)

    @property
    def compilations(self) -> int:
        """The number of compilations of each contender."""
        return 1 if self.quick or self.clock.is_limited else 3


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Return the options; exit with a one-line message if they are wrong.

    Args:
        arguments: the command line; by default that of the process.
    """
    parser = _Parser(
        prog="python -m benchmarks",
        description="Measure optlab beside Optax, hand-written steps and PyTorch.",
        epilog="Parts: "
        + "; ".join(f"{name}: {what}" for name, what in PARTS.items())
        + f". Alone: {ACCELERATOR}: results and times on a GPU, in at most six minutes, with "
        "nothing to choose but --quick and --out.",
    )
    default_shapes = [name for name in SHAPES if name != "tiny"]
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        type=_one_of((*PARTS, ACCELERATOR)),
        help="what to measure (all)",
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        type=_one_of(CASES),
        metavar="CASE",
        help=f"cases of the parts step and memory: {', '.join(CASES)} (all)",
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=_one_of(SHAPES),
        metavar="SHAPES",
        help=f"networks with whose parameters to measure: {', '.join(SHAPES)} (all but tiny)",
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        type=_one_of(PEERS),
        metavar="PEER",
        help=f"contenders besides {BASE}, the base of all ratios: {', '.join(PEERS)} (all)",
    )
    parser.add_argument("--rounds", type=_count, help=f"samples of each contender ({ROUNDS})")
    parser.add_argument(
        "--donate",
        type=_one_of(DONATIONS),
        default="yes",
        help="whether a step may reuse the memory of its arguments (yes)",
    )
    parser.add_argument(
        "--minutes",
        type=_positive,
        help="time for everything: fewer rounds, and cases are left out, the less usual ones first "
        f"({MINUTES:g} if no part, case, shape, peer or round is chosen, otherwise unlimited)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny shapes and few rounds, to try things out"
    )
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write results.json and pictures to this folder"
    )
    namespace = parser.parse_args(arguments)
    if ACCELERATOR in namespace.parts and namespace.parts != [ACCELERATOR]:
        parser.error(f"argument PART: {ACCELERATOR} must stand alone")
    if torch_peers := [name for name in namespace.peers or () if name in TORCH_PEERS]:
        if importlib.util.find_spec("torch") is None:
            parser.error(
                f"argument --peers: {torch_peers[0]} needs PyTorch, which is not installed"
            )
        if namespace.donate == "no":
            parser.error(
                f"argument --peers: {torch_peers[0]} works in place, so --donate must not be no"
            )
    if namespace.out:
        try:
            namespace.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(
                f"argument --out: cannot make the folder {namespace.out}: {error.strerror}"
            )
        if not os.access(namespace.out, os.W_OK):
            parser.error(f"argument --out: cannot write to the folder {namespace.out}")
    choices = ("parts", "cases", "shapes", "peers", "rounds", "quick")
    is_default = not any(getattr(namespace, name) for name in choices)
    minutes = namespace.minutes or (MINUTES if is_default else math.inf)
    names = namespace.cases or CASES
    if math.isfinite(minutes) and not namespace.cases:
        names = [*FIRST, *(name for name in CASES if name not in FIRST)]
    return Options(
        parts=tuple(namespace.parts or PARTS),
        cases=tuple(CASES[name] for name in names),
        shapes=tuple(namespace.shapes or (["tiny"] if namespace.quick else default_shapes)),
        peers=tuple(name for name in PEERS if name == BASE or name in (namespace.peers or PEERS)),
        donations=DONATIONS[namespace.donate],
        rounds=namespace.rounds or (QUICK_ROUNDS if namespace.quick else ROUNDS),
        quick=namespace.quick,
        markdown=namespace.markdown,
        out=namespace.out,
        clock=Clock(60 * minutes),
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {message}\n")


def _one_of(names: Iterable[str]) -> Callable[[str], str]:
    """Return a check of a name; some Pythons refuse an empty list if `choices` are set."""

    def check(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(names)}, got {text}")
        return text

    return check


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number > 0, got {text}")
    return number


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text}")
    return int(text)
