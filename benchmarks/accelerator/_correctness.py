"""Whether the results on the device are right: against float64 references, and the CPU's.

An error is given as a multiple of what is allowed, so that 1 is the limit.
"""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optlab
from benchmarks.accelerator._run import Item
from benchmarks.cases import CASES, Case
from benchmarks.contenders import JaxStep
from benchmarks.report import Record
from benchmarks.shapes import Arrays, start
from benchmarks.timing import TOLERANCE, Disagreement, check_agreement
from optlab import registry
from optlab.registry import Row
from optlab.testing import CHECKS, _runs

STEPS = (1, 2, 7, 50)
"""The updates that are compared with those of the reference."""

SLOW = ("shampoo", "soap")
"""The rows that take long to compile, and therefore come last."""

CLIP_ERROR = 2e-6
"""Allowed relative error of a clipped norm: a float32 sum in any order, and two roundings."""

CHECKED = {
    "adamw": ("extreme_gradients_match_reference",),
    "clip_by_global_norm": ("extreme_gradients_match_reference",),
    "adafactor": ("extreme_gradients_match_reference",),
    "sgd": ("low_precision_keeps_types_and_computes_in_float32",),
    "adam": ("low_precision_keeps_types_and_computes_in_float32",),
    "lamb": ("low_precision_keeps_types_and_computes_in_float32",),
}
"""Rows and checks of `optlab.testing` that depend on how the device treats extremes and types."""


def correctness(quick: bool) -> list[Item]:
    """Return the items: what matters most goes first."""
    rows = {**registry.OPTIMIZERS, **registry.TRANSFORMATIONS, **registry.WRAPPERS}
    chosen = [rows[name] for name in (("sgd", "clip_by_value") if quick else rows)]
    cases = [CASES[name] for name in (("sgd",) if quick else CASES)]
    shapes = {"large": (64 if quick else 2**20,), "matrix": (64, 48), "odd": (7,), "one": (1,)}
    items = [
        Item("correctness", "the references", lambda: _against_references(chosen), 0.2),
        Item("correctness", "skip and clip", _skip_and_clip, 0.3),
        Item("correctness", "the CPU", lambda: _against_cpu(cases, shapes), 0.3),
    ]
    checked = {"sgd": CHECKED["sgd"]} if quick else CHECKED
    for name, checks in checked.items():
        for check in checks:
            items.append(
                Item(
                    "correctness",
                    f"{name}, {check}",
                    lambda row=rows[name], check=check: _checked(row, check),
                    0.35,
                )
            )
    return items


def _found(what: str, against: str, error: float) -> Record:
    return {"what": what, "against": against, "error": error, "right": bool(error <= 1)}


def _against_references(rows: Sequence[Row], seconds: float = 110.0) -> Iterator[Record]:
    """Compare 50 updates of each row with its reference in NumPy float64.

    The compiler works on several rows at a time. The threads end with the process, so that one row
    that takes too long holds nothing up.
    """
    rows = [row for row in rows if row.reference]
    waiting: queue.SimpleQueue[Row] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[str, float | Exception]] = queue.SimpleQueue()
    for row in sorted(rows, key=lambda row: row.name in SLOW):
        waiting.put(row)

    def work() -> None:
        while not waiting.empty():
            try:
                row = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((row.name, _reference_error(row)))
            except Exception as error:  # the others shall still be compared
                done.put((row.name, error))

    for _ in range(min(8, os.cpu_count() or 1)):
        threading.Thread(target=work, daemon=True).start()
    until, failures, left = time.monotonic() + seconds, [], {row.name for row in rows}
    while left:
        try:
            name, error = done.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            failures.append(f"no time was left for {', '.join(sorted(left))}")
            break
        left.discard(name)
        if isinstance(error, Exception):
            failures.append(f"{name}: {type(error).__name__}: {error}"[:200])
        else:
            yield _found(name, "reference, float64", error)
    while not waiting.empty():  # the threads shall begin no more
        with contextlib.suppress(queue.Empty):
            waiting.get_nowait()
    if failures:
        raise RuntimeError("; ".join(failures))


def _reference_error(row: Row) -> float:
    """Return the largest error in all samples, relative to the row's tolerance."""
    params = _runs.parameters(row)
    grads = {key: g[: max(STEPS)] for key, g in _runs.gradients(row).items()}
    outcomes, _ = _runs.run_samples(row, grads, params)
    errors = []
    for outcome, options in zip(outcomes, row.samples, strict=True):
        arguments = {**row.fixed, **row.arguments(**options)}
        wanted = _runs.reference_trajectory(row, arguments, params, grads, STEPS)
        for leaf, result in enumerate(map(np.asarray, jax.tree.leaves(outcome))):
            largest = max(np.abs(want[leaf]).max() for want in wanted.values()) or 1.0
            for t, want in wanted.items():
                errors.append(np.abs(result[t - 1] - want[leaf]).max() / (row.rtol * largest))
    return float(np.max(errors))  # NaN is no error that is allowed


def _skip_and_clip() -> Iterator[Record]:
    """Compare clipped norms at the ends of float32; a step that is not finite changes nothing."""
    rng = np.random.default_rng(0)
    base = {f"leaf{i}": rng.standard_normal((50, i + 1)).astype(np.float32) for i in range(10)}
    clip = optlab.clip_by_global_norm(1.0)
    update = jax.jit(clip.update)
    for size in (1e-30, 1e-3, 1.0, 1e18, 1e36):
        grads = {name: (g * size).astype(np.float32) for name, g in base.items()}
        exact = {name: g.astype(np.float64) for name, g in grads.items()}
        norm = np.sqrt(sum(np.sum(g * g) for g in exact.values()))
        clipped, _ = update(grads, clip.init(grads))
        wanted = {name: g * min(1.0, 1.0 / norm) for name, g in exact.items()}
        error = max(np.max(np.abs(np.asarray(clipped[name]) / wanted[name] - 1)) for name in wanted)
        yield _found(f"clip_by_global_norm, {size:g}", "NumPy, float64", error / CLIP_ERROR)
    tx = optlab.skip_nonfinite(optlab.adamw(1e-3))
    params = jax.tree.map(jnp.asarray, base)

    @jax.jit
    def step(grads: Any, state: Any, params: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    good, state = step(base, tx.init(params), params)
    for bad in (np.nan, np.inf, -np.inf):
        grads = {**base, "leaf3": np.where(base["leaf3"] > 1, bad, base["leaf3"])}
        after, skipped = step(grads, state, good)
        same = all(np.array_equal(after[name], good[name]) for name in good)
        counted = sum(int(x) for x in jax.tree.leaves(optlab.skip_counts(skipped)))
        yield _found(f"skip_nonfinite, {bad}", "no change", 0.0 if same and counted else np.inf)


class _CpuStep(JaxStep):
    """A step that runs on the CPU, beside a device."""

    def __init__(self, case: Case, params: Arrays, gradients: Any) -> None:
        self._cpu = jax.local_devices(backend="cpu")[0]
        with jax.default_device(self._cpu):
            super().__init__("CPU", case.functions("optlab"), params, gradients, donate=False)

    def set_gradients(self, gradients: Any) -> None:
        super().set_gradients({k: jax.device_put(g, self._cpu) for k, g in gradients.items()})


def _against_cpu(cases: Sequence[Case], shapes: dict[str, tuple[int, ...]]) -> Iterator[Record]:
    """Compare the compiled step of each case with the same on the CPU, after three updates."""
    params, arrays = start(dict(sorted(shapes.items())))
    gradients = {name: jnp.asarray(g) for name, g in arrays.items()}
    for case in cases:
        here = JaxStep("device", case.functions("optlab"), params, gradients, donate=True)
        there = _CpuStep(case, params, gradients)
        try:
            shares = check_agreement([there, here], list(params.values()), gradients)
        except Disagreement as disagreement:
            yield _found(f"{case.name}: {disagreement}", "the CPU", np.inf)
            continue
        yield _found(case.name, "the CPU", shares["device"] / TOLERANCE)


def _checked(row: Row, name: str) -> Iterator[Record]:
    """Run a check of `optlab.testing`, which says itself what is allowed."""
    try:
        CHECKS[name](row)
    except AssertionError as error:
        yield _found(f"{row.name}: {name}: {' '.join(str(error).split())[:160]}", "check", np.inf)
    else:
        yield _found(f"{row.name}: {name.replace('_', ' ')}", "check", 0.0)
