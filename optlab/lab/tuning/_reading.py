"""Step 6: read the curves of the best run and of a typical one."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from optlab.lab.diagnosis._diagnosis import diagnose
from optlab.lab.training._history import History
from optlab.lab.training._results import Evaluation
from optlab.lab.training._train import train
from optlab.lab.tuning._procedure import Outcome, OutOfBudget, Procedure, Record
from optlab.lab.tuning._result import PASSED, SKIPPED, WARNING, Chart, Series, Step, Table
from optlab.wrappers._monitor import monitor

STEP = Step("learning curves", "What do the curves of the best and of a typical run show?")

UNTIL = 0.78
"""The part of the budget that is used when this step ends, at most."""

POINTS = 200
"""The most points of a curve in a chart."""

RATIOS = 8
"""The most parameters whose ratio of update to weight is drawn."""


def read(procedure: Procedure) -> Outcome:
    """Train the best and a typical trial once more, watched, and diagnose their curves."""
    records = [r for r in procedure.records.values() if procedure.is_whole(r)]
    order = [r for r in procedure.ranked(records) if r.trial.status != "diverged"]
    chosen = {"best": order[0]} if order else {}
    if len(order) > 2 and not procedure.quick:
        chosen["typical"] = order[len(order) // 2]
    affordable = procedure.meter.left(UNTIL) / (procedure.pace() * procedure.steps)
    chosen = dict(list(chosen.items())[: int(affordable)])
    if not chosen:
        evidence = "The budget of this step is used."
        return Outcome(replace(STEP, verdict=SKIPPED, evidence=evidence))
    rows: list[tuple[str, str, str, str]] = []
    charts: list[Chart] = []
    for what, record in chosen.items():
        entry = procedure.once(f"reading/{what}", lambda r=record: _read(procedure, r))
        if entry["charts"]:
            charts += [
                Chart(**{**c, "series": [Series(**s) for s in c["series"]]})
                for c in _named(what, entry["charts"])
            ]
        rows += [(what, *finding) for finding in entry["findings"]]
    of_best = [row for row in rows if row[0] == "best"]
    evidence = "; ".join(f"{what} run: {pattern}" for what, pattern, *_ in rows)
    evidence = f"{evidence[0].upper()}{evidence[1:]}." if rows else "Nothing stands out."
    columns = zip(*rows, strict=True) if rows else ((),) * 4
    headings = ("run", "pattern", "evidence", "what to try")
    table = Table("What the curves show", dict(zip(headings, map(list, columns), strict=True)))
    step = replace(
        STEP,
        verdict=WARNING if of_best else PASSED,
        evidence=evidence,
        advice=of_best[0][3] if of_best else "",
        charts=charts,
        tables=[table] if rows else [],
    )
    return Outcome(step, {"findings": [list(row) for row in rows]})


def _named(what: str, charts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**chart, "title": f"{chart['title']}, {what} run"} for chart in charts]


def _read(procedure: Procedure, record: Record) -> dict[str, Any]:
    task, optimizer = procedure.optimizer(record.trial)

    def stop_in_time(evaluation: Evaluation) -> None:
        procedure.meter.count(evaluation.step - counted[0])
        counted[0] = evaluation.step
        if not procedure.meter.left():
            raise OutOfBudget

    counted = [0]
    try:
        run = train(
            task,
            monitor(optimizer),
            steps=procedure.steps_of(record.trial.values),
            key=jax.random.key(procedure.seed),
            eval_every=procedure.every(record.trial.values),
            callbacks=[stop_in_time],
        )
    except OutOfBudget:
        return {"findings": [], "charts": []}
    procedure.meter.count(0, 1)
    findings = diagnose(run.history, baseline=task.baseline).findings
    return {
        "findings": [[f.pattern, f.evidence, f.advice] for f in findings],
        "charts": _charts(run.history),
    }


def _charts(history: History) -> list[dict[str, Any]]:
    """Return the charts of a run as JSON."""
    window = max(1, len(history.loss) // POINTS)
    count = len(history.loss) // window
    means = history.loss[: count * window].reshape(count, window).mean(axis=1)
    updates = [(place + 0.5) * window for place in range(count)]
    label = "training, batches" if window == 1 else f"training, means of {window} batches"
    series = [{"name": label, "x": updates, "y": means.tolist()}]
    for name, metrics in (("training", history.train), ("validation", history.validation)):
        if "loss" in metrics:
            label = f"{name}, evaluation mode"
            losses = np.asarray(metrics["loss"], float).tolist()
            series.append({"name": label, "x": history.steps.tolist(), "y": losses})
    charts = [{"title": "Loss", "x_label": "update", "y_label": "loss", "series": series}]
    ratios = {n: v for n, v in history.monitored.items() if n.startswith("ratio/")}
    if ratios:
        shown = list(ratios.items())[:RATIOS]
        step = max(1, len(history.loss) // POINTS)
        charts.append(
            {
                "title": "Update-to-weight ratio",
                "x_label": "update",
                "y_label": "norm of the update / norm of the weights",
                "y_log": True,
                "series": [
                    {
                        "name": name.removeprefix("ratio/"),
                        "x": list(range(0, len(values), step)),
                        "y": np.asarray(values, float)[::step].tolist(),
                    }
                    for name, values in shown
                ],
                "levels": {"1e-3, a usual size": 1e-3},
                "note": f"The first {RATIOS} of {len(ratios)} arrays."
                if len(ratios) > RATIOS
                else "",
            }
        )
    return charts
