"""Measure, print tables, and write results and pictures: `python -m benchmarks --help`."""

import contextlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before jaxlib loads LAPACK
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")  # PyTorch needs memory, too

import jax

from benchmarks import compilation, matrices, memory, precision, small, step
from benchmarks.contenders import num_cores
from benchmarks.environment import environment
from benchmarks.options import ACCELERATOR, Options, parse
from benchmarks.report import Record, Section, plain
from benchmarks.timing import Disagreement

SECTIONS = {
    "step": step.sections,
    "compile": compilation.sections,
    "memory": memory.sections,
    "types": precision.sections,
    "matrices": matrices.sections,
    "small": small.sections,
}

SHARES = {
    "step": 0.60,
    "compile": 0.09,
    "memory": 0.06,
    "types": 0.06,
    "matrices": 0.12,
    "small": 0.07,
}
"""The shares of the time of a run whose time is limited."""

QUICK = "Only tried out (--quick): these figures say nothing about speed."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for.

    Args:
        arguments: the command line; by default that of the process.

    Returns:
        The exit status: 0; 1 if contenders of a case disagree, in which case all others are still
        measured; 130 after an interruption. However it ends, even by an exception, the measurements
        until then are printed and written.
    """
    options = parse(arguments)
    if options.parts == (ACCELERATOR,):
        from benchmarks import accelerator

        with _no_compilation_cache():
            return accelerator.run(options)
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(num_cores())
    versions = environment()
    print(plain([[name, value] for name, value in versions.items()]))
    if options.quick:
        print(f"\n{QUICK}")
    records = []
    disagreements = []
    try:
        with _no_compilation_cache():
            for section in _sections(options):
                with contextlib.ExitStack() as stack:
                    stack.callback(_show, section, options)
                    _take(section, records, disagreements)
    except KeyboardInterrupt:
        return 130
    finally:
        for line in disagreements:
            print(f"python -m benchmarks: {line}", file=sys.stderr)
        if options.out:
            _write(options, versions, records, disagreements)
    return 1 if disagreements else 0


def _sections(options: Options) -> Iterator[Section]:
    """Yield the sections of all parts, each with its share of the time where that is limited."""
    total = sum(SHARES[part] for part in options.parts)
    over = 0.0
    for part in options.parts:
        count = len(options.shapes) * len(options.donations) if part in ("step", "memory") else 1
        for number, section in enumerate(SECTIONS[part](options), start=1):
            options.clock.begin((over + SHARES[part] * min(1.0, number / count)) / total)
            yield section
        over += SHARES[part]


def _take(section: Section, records: list[Record], disagreements: list[str]) -> None:
    """Measure a section, and print a dot on the standard error for each result."""
    print(f"{section.part}: {section.title} ", end="", file=sys.stderr)
    for record in section.results:
        if isinstance(record, Disagreement):
            disagreements.append(f"{section.title}: {record}")
            continue
        section.records.append(record)
        records.append(record)
        print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)


def _show(section: Section, options: Options) -> None:
    print(f"\n{section.text(options.markdown)}", flush=True)
    if options.clock.was_over:
        print("\nIts time was over here. More is measured with --minutes, or with parts chosen.")


@contextlib.contextmanager
def _no_compilation_cache() -> Iterator[None]:
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def _write(
    options: Options, versions: dict[str, str], records: list[Record], disagreements: list[str]
) -> None:
    from benchmarks.plots import save_pictures

    contents = {
        "environment": versions,
        "quick": options.quick,
        "disagreements": disagreements,
        "results": records,
    }
    path = options.out / "results.json"
    path.write_text(json.dumps(contents, indent=1) + "\n")
    print(path, file=sys.stderr)
    for picture in save_pictures(records, options.out, options.quick):
        print(picture, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
