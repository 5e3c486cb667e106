"""Step 3: where does each optimizer in the running train? A range test for each."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from optlab import _checks
from optlab.lab.rates._range_test import RangeTest, run_range_test
from optlab.lab.tuning._procedure import WHO, Contender, Outcome, Procedure
from optlab.lab.tuning._result import PASSED, WARNING, Chart, Series, Step, Table
from optlab.lab.tuning._space import RATE, WITHOUT_A_TEST
from optlab.lab.tuning._texts import duration, number

STEP = Step("learning rates", "At which learning rates does each optimizer train?")

UNTIL = 0.2
"""The part of the budget that is used when this step ends, at most."""

RAMP, SEEDS = 100, 3
"""Updates and seeds of the rising run."""

QUICK_RAMP, QUICK_SEEDS = 60, 2

LOWEST, HIGHEST = 1e-7, 10.0
"""The first and the last rate."""

CONFIRMING, LEAST = 8, 30
"""The usual number of confirming rates; and the fewest updates with which they tell anything."""

TEST_COSTS = 0.7
"""The time of a range test without confirming runs, as a multiple of that of the step before."""

MOST = 300
"""The most updates of a confirming run; the search after it goes on from there."""


def rates(procedure: Procedure) -> Outcome:
    """Run a range test for each optimizer, as long as the budget allows."""
    check_budget(procedure)
    found: dict[str, dict[str, Any]] = {}
    for place, contender in enumerate(procedure.contenders):
        if RATE in procedure.space:
            break
        share = procedure.meter.left(UNTIL) / (len(procedure.contenders) - place)
        key = f"rates/{contender.name}"
        fits = _fits(procedure, share)
        test = partial(_test, procedure, contender, share) if fits else partial(dict, NOT_TESTED)
        found[contender.name] = procedure.once(key, test)
    if not found:
        evidence = f"The range {procedure.space[RATE]} is given, and no test was made."
        return Outcome(replace(STEP, verdict=PASSED, evidence=evidence), {})
    without = [name for name, test in found.items() if test["rate"] is None]
    evidence = " ".join(_sentence(name, test) for name, test in found.items())
    advice = ""
    if without:
        low, high = map(number, WITHOUT_A_TEST)
        advice = f"The search takes rates from {low} to {high} for {', '.join(without)}."
    step = replace(
        STEP,
        verdict=WARNING if without else PASSED,
        evidence=evidence,
        advice=advice,
        charts=[_chart(name, test) for name, test in found.items() if len(test["rates"])],
        tables=[_table(found)],
    )
    return Outcome(step, {name: test["rate"] for name, test in found.items()})


NOT_TESTED = {
    "rate": None,
    "interval": None,
    "reason": "the budget is too small for a test",
    "rates": np.zeros(0),
    "median": np.zeros(0),
    "confirmed_rates": np.zeros(0),
    "confirmed_losses": np.zeros((0, 0)),
    "confirmed_steps": 0,
    "at_edge": False,
}
"""What stands in place of a test that was not made."""


def _fits(procedure: Procedure, share: float) -> bool:
    """Whether a share of the budget is enough for a range test.

    Where the budget is a time, a test takes about as long as the step before did: compilation is
    most of both.
    """
    if procedure.meter.budget.in_updates:
        return share > 0
    return share > TEST_COSTS * procedure.done["overfit a batch"].step.seconds


def check_budget(procedure: Procedure) -> None:
    """Require that what is left allows a whole run."""
    pace = procedure.pace()
    needed, left = pace * procedure.steps, procedure.meter.left()
    if needed <= left:
        return
    budget = procedure.meter.budget
    if budget.in_updates:
        whole = f"{procedure.meter.used + needed:.0f} updates"
    else:
        whole = duration(procedure.meter.used + needed)
    _checks.fail(
        WHO,
        f"budget must allow the checks and one run of {procedure.steps} updates, together about "
        f"{whole} here",
        budget.text,
        "pass a larger budget (ten times as much for a search), or fewer steps",
    )


def _test(procedure: Procedure, contender: Contender, share: float) -> dict[str, Any]:
    ramp, seeds = (QUICK_RAMP, QUICK_SEEDS) if procedure.quick else (RAMP, SEEDS)

    def affordable() -> int:
        most = (share / procedure.pace() - ramp * seeds) / (CONFIRMING * seeds)
        updates = int(min(procedure.steps, MOST, most))
        return 0 if updates < min(LEAST, procedure.steps) else updates

    # It depends on the time that was left, and a call that goes on has less.
    confirm = procedure.once(f"confirm/{contender.name}", affordable)
    test = run_range_test(
        lambda about: _Runs(procedure, contender.name, confirm),
        procedure.plain,
        lambda rate: contender.make(learning_rate=rate),
        min_lr=LOWEST,
        max_lr=HIGHEST,
        steps=ramp,
        seeds=range(procedure.seed, procedure.seed + seeds),
        mode="exponential",
        confirm=confirm,
        lanes=None,
        memory=None,
        progress=False,
    )
    return _plain(test)


class _Runs:
    """The runs of one range test in the file of the procedure, which counts them as they end."""

    def __init__(self, procedure: Procedure, name: str, confirm: int):
        self._procedure, self._name, self._confirm = procedure, name, confirm

    def rungs(self, step: int) -> dict[int, Any]:
        ended = self._procedure.journal.entries(self._key(step, ""))
        return {int(place): run for place, run in ended.items()}

    def add_rungs(self, curves: Mapping[tuple[int, int], Any]) -> None:
        for run in curves.values():
            seeds, *steps = run["losses"].shape  # of the rising run all losses, else the last
            self._procedure.meter.count(seeds * (*steps, self._confirm)[0], seeds)
        entries = {self._key(step, place): run for (place, step), run in curves.items()}
        self._procedure.journal.put(entries, self._procedure.meter)

    def close(self) -> None:
        pass

    def _key(self, step: int, place: int | str) -> str:
        return f"range test/{self._name}/{step}/{place}"


def _plain(test: RangeTest) -> dict[str, Any]:
    """Return what a report shows of a test."""
    return {
        "rate": test.suggested_max,
        "interval": test.max_interval,
        "reason": test.reason,
        "rates": test.rates,
        "median": test.median,
        "confirmed_rates": test.confirmed_rates,
        "confirmed_losses": test.confirmed_losses,
        "confirmed_steps": test.confirmed_steps,
        "at_edge": test.at_edge,
    }


def _sentence(name: str, test: Mapping[str, Any]) -> str:
    if test["rate"] is None:
        return f"{name}: no reliable suggestion, as {test['reason']}."
    low, high = test["interval"]
    interval = "" if low == high else f" (single seeds: {number(low)} to {number(high)})"
    by = "runs at constant rates" if test["confirmed_steps"] else "the rising run alone"
    return f"{name}: {number(test['rate'])}{interval}, by {by}."


def _chart(name: str, test: Mapping[str, Any]) -> Chart:
    series = [
        Series("rising rate, median of the seeds", test["rates"].tolist(), test["median"].tolist())
    ]
    if test["confirmed_steps"]:
        losses = np.asarray(test["confirmed_losses"], float)
        label = f"validation loss after {test['confirmed_steps']} updates at a constant rate"
        series.append(
            Series(
                label,
                test["confirmed_rates"].tolist(),
                losses.mean(axis=1).tolist(),
                "points",
                losses.min(axis=1).tolist(),
                losses.max(axis=1).tolist(),
            )
        )
    marks = {} if test["rate"] is None else {"suggested": test["rate"]}
    return Chart(f"Range test of {name}", "learning rate", "loss", series, x_log=True, marks=marks)


def _table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    return Table(
        "Suggested rates",
        {
            "optimizer": list(found),
            "rate": [number(test["rate"]) for test in found.values()],
            "over seeds": [
                "–" if test["interval"] is None else " to ".join(map(number, test["interval"]))
                for test in found.values()
            ],
            "updates of a confirming run": [str(t["confirmed_steps"]) for t in found.values()],
        },
    )
