"""Run the items of the accelerator's benchmark within their time, and write what they find.

An item that fails costs a line and no more. What is known is written after each item. If one takes
longer than the time that is left, as a compilation may, a watchdog writes the rest and ends the
process.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from benchmarks.environment import environment
from benchmarks.options import Options
from benchmarks.report import MISSING, Record, Table, by_columns, plain, spread

SECONDS = 335.0
"""The time for all items. Imports and the last writing have the rest of the six minutes."""

TITLES = {
    "correctness": "Correctness: the largest error, as a multiple of what is allowed",
    "step": "Time of a step, float32, donated",
    "matrices": "Rules on matrices, the hidden matrices of GPT-2",
    "sweep": "A sweep of an MLP of 64–128–128–10, AdamW, compilation included",
}


@dataclass(frozen=True)
class Item:
    """One thing to measure.

    Attributes:
        part: a key of TITLES.
        name: what it is, in errors and in the progress.
        measure: yields records.
        until: it does not begin after this share of the time.
    """

    part: str
    name: str
    measure: Callable[[], Iterable[Record]]
    until: float = 1.0


@dataclass
class Findings:
    """What is known so far, which the watchdog may write while an item is measured.

    Attributes:
        machine: names and values of the hardware and the versions.
        quick: whether the figures mean nothing.
        folder: where to write; None for nowhere.
        records: the results.
        problems: a line for each item that failed or had no time.
        seconds: item → its seconds.
    """

    machine: dict[str, str]
    quick: bool
    folder: Path | None
    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock, repr=False)

    @property
    def wrong(self) -> list[Record]:
        """The results of the part correctness that are not right."""
        return [r for r in self.records if r["part"] == "correctness" and not r["right"]]

    def text(self) -> str:
        """Return the machine, the tables, the aims and the problems."""
        parts = [plain([[name, value] for name, value in self.machine.items()])]
        if self.quick:
            parts.append("Only tried out (--quick): these figures say nothing about speed.")
        for part, title in TITLES.items():
            records = [r for r in list(self.records) if r["part"] == part]
            table = plain(by_columns(COLUMNS[part], records)) if records else "nothing measured"
            parts.append(f"{title}\n\n{table}")
        parts.append("Aims, by the worst row\n\n" + plain(aims(self.records)))
        if self.problems:
            parts.append("Failed, or left out\n\n" + "\n".join(self.problems))
        return "\n\n".join(parts) + "\n"

    def write(self) -> None:
        """Write the JSON and the table, each whole or not at all."""
        if self.folder is None:
            return
        contents = {name: getattr(self, name) for name in ("machine", "quick", "problems")}
        contents |= {"seconds": self.seconds, "results": self.records}
        with self.lock:
            name = slug(self.machine["chip"])
            for suffix, text in (
                ("json", json.dumps(contents, indent=1) + "\n"),
                ("txt", self.text()),
            ):
                beside = self.folder / f"{name}.{suffix}.part"
                beside.write_text(text)
                beside.replace(self.folder / f"{name}.{suffix}")


def run(options: Options, items: Sequence[Item] | None = None, seconds: float = SECONDS) -> int:
    """Measure everything, print it and write it.

    Args:
        options: `quick` and `out` count.
        items: what to measure; by default everything.
        seconds: after which the watchdog ends the process.

    Returns:
        The exit status: 0; 1 if a result is wrong or an item failed.
    """
    machine = machine_of()
    began = time.perf_counter()
    if items is None:
        from benchmarks.accelerator._correctness import correctness
        from benchmarks.accelerator._speed import speed

        items = [*correctness(options.quick), *speed(options.quick)]
    findings = Findings(machine, options.quick, options.out)
    watchdog = threading.Timer(seconds, _end, [findings, "the time is over"])
    watchdog.daemon = True
    watchdog.start()
    longest: dict[str, float] = {}
    try:
        for item in items:
            left = seconds - (time.perf_counter() - began)
            if left < seconds * (1 - item.until) or left < longest.get(item.part, 0):
                findings.problems.append(f"{item.part}, {item.name}: no time was left")
                continue
            own = _measured(item, findings)
            longest[item.part] = max(own, longest.get(item.part, 0))
            findings.write()
    finally:
        watchdog.cancel()
        findings.write()
        print(findings.text())
    failed = any("no time was left" not in line for line in findings.problems)
    return 1 if findings.wrong or failed else 0


def _measured(item: Item, findings: Findings) -> float:
    """Measure one item, whatever it raises; return its seconds."""
    began = time.perf_counter()
    print(f"{item.part}, {item.name} ", end="", flush=True, file=sys.stderr)
    try:
        for record in item.measure():
            findings.records.append({"part": item.part, **record})
            print(".", end="", flush=True, file=sys.stderr)
    except Exception as error:  # a driver, a compiler, another framework: whatever it is, go on
        text = " ".join(str(error).split())[:300]
        findings.problems.append(f"{item.part}, {item.name}: {type(error).__name__}: {text}")
        print(f" {type(error).__name__}: {text}", end="", file=sys.stderr)
    seconds = time.perf_counter() - began
    findings.seconds[f"{item.part}, {item.name}"] = round(seconds, 2)
    print(f" {seconds:.1f} s", flush=True, file=sys.stderr)
    return seconds


def _end(findings: Findings, reason: str) -> None:
    """Write what is known and end the process, in the middle of whatever it does."""
    findings.problems.append(f"{reason}: the rest was left out")
    try:
        findings.write()
        print(findings.text(), flush=True)
    finally:
        os._exit(1 if findings.wrong else 3)


def slug(chip: str) -> str:
    """Return a chip's name as that of a file."""
    return re.sub(r"[^a-z0-9]+", "-", chip.lower()).strip("-") or "unknown"


def machine_of() -> dict[str, str]:
    """Return the chip, its driver, and the versions."""
    device = jax.devices()[0]
    machine = {"chip": str(device.device_kind), "devices": str(jax.device_count())}
    if jax.default_backend() == "gpu":
        fields = "name,driver_version,memory.total,power.limit,clocks.max.memory"
        machine["nvidia-smi"] = _said(["nvidia-smi", f"--query-gpu={fields}", "--format=csv"])
        platform = getattr(getattr(device, "client", None), "platform_version", "")
        machine["platform"] = " ".join(str(platform).split())[:200]
    try:
        versions = environment()
    except Exception as error:  # such as a PyTorch that cannot be loaded
        return machine | {"environment": f"{type(error).__name__}: {error}"[:200]}
    return machine | versions


def _said(command: list[str]) -> str:
    """Return the last line that a command prints, or why there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip().splitlines()[-1]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        return f"unknown ({type(error).__name__})"


def _quartiles(key: str, digits: int = 2) -> Callable[[Record], str]:
    return lambda r: spread(r[key], digits) if r.get(key) else MISSING


COLUMNS: dict[str, dict[str, Callable[[Record], str]]] = {
    "correctness": {
        "what": lambda r: r["what"],
        "against": lambda r: r["against"],
        "error / allowed": lambda r: f"{r['error']:.2g}",
        "": lambda r: "right" if r["right"] else "WRONG",
    },
    "step": {
        "parameters": lambda r: r["shapes"],
        "case": lambda r: r["case"],
        "contender": lambda r: r["contender"],
        "ms": _quartiles("ms", 3),
        "speed / optax's": _quartiles("speed"),
        "of the roofline": _quartiles("roofline"),
        "difference": lambda r: MISSING if r["difference"] is None else f"{r['difference']:.0e}",
        "first step, s": lambda r: MISSING if r["first"] is None else f"{r['first']:.1f}",
    },
    "matrices": {
        "rule": lambda r: r["contender"],
        "ms": _quartiles("ms", 2),
        "speed / Optax's Muon": _quartiles("speed"),
        "first step, s": lambda r: f"{r['first']:.1f}",
        "difference": lambda r: MISSING if r["difference"] is None else f"{r['difference']:.0e}",
    },
    "sweep": {
        "trials at a time": lambda r: str(r["lanes"]),
        "updates": lambda r: str(r["updates"]),
        "seconds": lambda r: f"{r['seconds']:.2f}",
        "trials a second": lambda r: f"{r['trials_a_second']:.2f}",
        "speed / one at a time": lambda r: f"{r['speed']:.1f}",
    },
}


def aims(records: Sequence[Record]) -> Table:
    """Return a table of the aims: what was reached at worst and at best, and in which row."""
    steps = [r for r in records if r["part"] == "step"]
    own = [r for r in steps if r["contender"] == "optlab"]
    many = [r for r in own if r["shapes"] == "many"]
    large = [r for r in own if r["shapes"] in ("gpt2", "vit-b16")]
    table = [["aim", "at worst", "at best"]]
    for aim, rows, key in (
        ("at least 0.92 of the roofline, large leaves", large, "roofline"),
        ("never slower than Optax", own, "speed"),
        ("at least 1.5 times as fast as Optax, 1000 leaves", many, "speed"),
        ("ahead of PyTorch fused", own, "to_torch"),
    ):
        ranked = sorted(((r[key]["50%"], r) for r in rows if r.get(key)), key=lambda pair: pair[0])
        cells = [f"{x:.2f} ({r['shapes']}, {r['case']})" for x, r in ranked]
        table.append([aim, *((cells[0], cells[-1]) if cells else (MISSING, MISSING))])
    return table
