"""Step 7: the finals. The best configurations with schedules, then over several seeds.

    heats     the best configuration with each schedule, at its own rate and at a higher one; the
              best configurations of others at a constant rate are in the running as they are
    finals    the best of these over several seeds, all with as many updates

A schedule ends at a low rate, and therefore allows a higher one before. The seeds of the finals
took no part in the search. A run may end early: if the mean score over the seeds was better at an
earlier evaluation, by more than the seeds differ, the candidate stops there. The score of a seed is
then that at the evaluation which is best for the other seeds, so that the choice does not flatter
it. Two candidates are tied if the interval of the difference of their scores, seed by seed, holds
0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from optlab.lab.ensembles._calibration import Scores
from optlab.lab.ensembles._ensemble import ensemble
from optlab.lab.sweeps._space import Range
from optlab.lab.tuning._procedure import (
    BLOCK,
    CONSTANT,
    FINALS_FROM,
    HEATS_FROM,
    Outcome,
    Procedure,
    Record,
    Values,
)
from optlab.lab.tuning._result import (
    FAILED,
    PASSED,
    WARNING,
    Chart,
    Interval,
    Series,
    Step,
    Table,
)
from optlab.lab.tuning._schedules import SCHEDULES
from optlab.lab.tuning._search import curves_chart
from optlab.lab.tuning._space import RATE
from optlab.lab.tuning._texts import number

STEP = Step("finals", "Which schedule wins, over several seeds?")

HEATS_UNTIL = 0.85
"""The part of the budget that is used when the heats end, at most."""

FACTORS = (1.0, 2.5)
"""Multiples of the best constant rate that are the highest rate of a schedule."""

FINALISTS, SEEDS = 4, 5
"""The candidates of the finals, and the seeds of each."""

QUICK_FINALISTS, QUICK_SEEDS = 2, 3

FRESH = 10
"""The first seed of the finals, counted from that of the search."""


def finals(procedure: Procedure) -> Outcome:
    """Try schedules, and then the best candidates over several seeds."""
    done = procedure.done["refinement"].facts
    spaces = {
        name: {key: Range.from_json(entry) for key, entry in space.items()}
        for name, space in done["spaces"].items()
    }
    earlier = [*procedure.of_stage("coarse search"), *procedure.of_stage("refinement")]
    earlier = [r for r in earlier if len(r.trial.scores) == 1 and r.trial.status != "diverged"]
    order = procedure.ranked([r for r in earlier if procedure.is_whole(r)] or earlier)
    if not order:
        evidence = "No run ended with a finite score."
        advice = "Give a larger budget, or fewer steps."
        return Outcome(replace(STEP, verdict=FAILED, evidence=evidence, advice=advice))
    heats = _heats(procedure, order[0], spaces)
    candidates = procedure.ranked([*heats, *_distinct(order)])
    candidates = [r for r in candidates if r.trial.status != "diverged"]
    plan = procedure.once(f"plan/{STEP.name}", partial(_plan, procedure, candidates))
    ended = [
        record
        for place, entry in enumerate(plan["candidates"])
        if (record := _final(procedure, place, entry, spaces, plan["seeds"])) is not None
    ]
    return _conclude(procedure, heats, ended, plan)


def _heats(
    procedure: Procedure, best: Record, spaces: Mapping[str, Mapping[str, Range]]
) -> list[Record]:
    trial = best.trial
    contender = procedure.contender(trial.optimizer)
    names = [name for name in SCHEDULES if name != CONSTANT]
    if procedure.quick:
        names = names[:1]
    records = []
    for place, schedule in enumerate(names):
        points = {
            HEATS_FROM + place * BLOCK + i: {**trial.values, RATE: trial.values[RATE] * factor}
            for i, factor in enumerate(FACTORS)
        }
        space = spaces[trial.optimizer]
        records += procedure.train(
            STEP.name, contender, points, space, schedule=schedule, share=HEATS_UNTIL
        )
    return records


def _distinct(order: Sequence[Record]) -> list[Record]:
    """Return the best trial, and the best of each other optimizer."""
    best: dict[str, Record] = {}
    for record in order:
        best.setdefault(record.trial.optimizer, record)
    return list(best.values())


def _plan(procedure: Procedure, candidates: Sequence[Record]) -> dict[str, Any]:
    """Return the candidates and the number of seeds that the rest of the budget allows."""
    finalists, seeds = (QUICK_FINALISTS, QUICK_SEEDS) if procedure.quick else (FINALISTS, SEEDS)
    affordable = procedure.meter.left() / (procedure.pace() * procedure.steps)
    # Three seeds each, and at least two candidates where two seeds each can be had.
    wanted = max(int(affordable / 3), 2 if affordable >= 4 else 1)
    finalists = min(finalists, len(candidates), wanted)
    seeds = max(1, min(seeds, int(affordable / finalists)))
    return {
        "seeds": seeds,
        "candidates": [
            {name: getattr(r.trial, name) for name in ("optimizer", "schedule", "values")}
            | {"number": r.trial.number, "score": r.trial.score, "updates": r.trial.updates}
            for r in candidates[:finalists]
        ],
    }


def _final(
    procedure: Procedure,
    place: int,
    entry: Mapping[str, Any],
    spaces: Mapping[str, Mapping[str, Range]],
    seeds: int,
) -> Record | None:
    """Return the runs of a candidate over the seeds; None if the budget is used."""
    ended = procedure.train(
        STEP.name,
        procedure.contender(entry["optimizer"]),
        {FINALS_FROM + place * BLOCK: entry["values"]},
        spaces[entry["optimizer"]],
        schedule=entry["schedule"],
        seeds=seeds_of(procedure, seeds),
        tests=True,
    )
    return ended[0] if ended else None


def seeds_of(procedure: Procedure, count: int) -> range:
    """Return the seeds of the finals."""
    first = procedure.seed + FRESH
    return range(first, first + count)


def _conclude(
    procedure: Procedure, heats: Sequence[Record], ended: Sequence[Record], plan: Mapping[str, Any]
) -> Outcome:
    seeds = plan["seeds"]
    if not ended:  # the budget ended before the finals did: what the heats have is the best known
        entry = plan["candidates"][0]
        winner = _winner(entry, entry["updates"], [entry["score"]], None, [])
        evidence = "The budget was used before the finals: the best single run stands for them."
        step = replace(STEP, verdict=WARNING, evidence=evidence, advice="Give a larger budget.")
        return Outcome(step, {"winner": winner})
    judged = sorted((_Judged.of(procedure, record) for record in ended), key=lambda x: x.order)
    best = judged[0]
    if best.record.trial.status == "diverged":
        evidence = "From some of the seeds, every candidate diverged."
        advice = "Lower the rate, clip the gradient, or lengthen the warm-up."
        return Outcome(replace(STEP, verdict=FAILED, evidence=evidence, advice=advice))
    trial, stop = best.record.trial, best.stop
    tied = [_name(other.record.trial) for other in judged[1:] if best.is_tied_with(other)]
    test = _test(procedure, best.record, stop, seeds)
    entry = {name: getattr(trial, name) for name in ("optimizer", "schedule", "values")}
    winner = _winner(entry, stop, best.scores, test, tied)
    winner |= {"candidates": len(judged), "seed": seeds_of(procedure, 1)[0]}
    split = "validation " if procedure.plain.splits else ""
    evidence = (
        f"{_name(trial)} has the best {split}{procedure.plain.score}, {Interval.of(best.scores)}, "
        f"of {len(judged)} candidates with {seeds} seed{'s' if seeds > 1 else ''} each."
        if len(judged) > 1
        else f"{_name(trial)} was the only candidate that the budget allowed: its {split}"
        f"{procedure.plain.score} is {Interval.of(best.scores)}."
    )
    evidence += f" Tied with it: {'; '.join(tied)}." if tied else ""
    if stop < best.record.steps[-1]:
        evidence += f" It is best after {stop} of {best.record.steps[-1]} updates, and stops there."
    missing = len(plan["candidates"]) - len(ended)
    if missing:
        evidence += f" For {missing} more the budget did not suffice."
    together, table = _ensemble(procedure, best.record, stop)
    evidence += together
    advice = ""
    if seeds < 3:
        advice = "Give a larger budget: with fewer than three seeds an interval says little."
    step = replace(
        STEP,
        verdict=PASSED if seeds > 2 else WARNING,
        evidence=evidence,
        advice=advice,
        charts=[
            curves_chart(procedure, [one.record for one in judged]),
            _intervals_chart(procedure, judged),
        ],
        tables=[
            _heats_table(procedure, heats),
            _finals_table(procedure, judged),
            *([table] if table else []),
        ],
    )
    return Outcome(step, {"winner": winner})


def _ensemble(procedure: Procedure, best: Record, stop: int) -> tuple[str, Table | None]:
    """Return a sentence and a table about an ensemble of the winner, if one is asked for."""
    members = procedure.ensemble
    if not members:
        return "", None
    if procedure.meter.left() < members * stop * procedure.pace():
        return " For the ensemble the budget did not suffice.", None
    scores = procedure.once("ensemble", lambda: _scores_together(procedure, best, stop))
    alone, together = scores["members"], scores["together"]
    sentence = (
        f" An ensemble of {members} has the error {number(together[0])} on the {scores['split']} "
        f"split, and its members {number(alone[0])} in the mean."
    )
    columns = {"": ["members, mean", f"ensemble of {members}"]}
    for place, name in enumerate(Scores._fields):
        columns[name] = [number(alone[place]), number(together[place])]
    return sentence, Table(f"An ensemble on the {scores['split']} split", columns)


def _scores_together(procedure: Procedure, best: Record, stop: int) -> dict[str, Any]:
    task, optimizer = procedure.optimizer(best.trial)
    members = procedure.ensemble
    report = ensemble(task, optimizer, members=members, steps=stop, seed=procedure.seed).report()
    procedure.meter.count(members * stop, members)
    return {
        "split": report.split,
        "members": [float(np.mean(values)) for values in report.members],
        "together": [float(value) for value in report.combined["probability"]],
    }


def _winner(
    entry: Mapping[str, Any], stop: int, scores: list[float], test: Any, tied: list[str]
) -> dict[str, Any]:
    names = ("optimizer", "schedule", "values")
    known = {name: entry[name] for name in names}
    more = {"stop": int(stop), "scores": scores, "test": test, "tied": tied, "candidates": 1}
    return {**known, **more}


class _Judged(NamedTuple):
    """A candidate as its seeds judge it.

    Attributes:
        record: its runs.
        stop: updates after which it ends.
        scores: the score of each seed there.
        order: a key that sorts candidates from the best.
    """

    record: Record
    stop: int
    scores: list[float]
    order: tuple[bool, float]

    @classmethod
    def of(cls, procedure: Procedure, record: Record) -> "_Judged":
        """Judge the runs of a candidate."""
        scores = np.asarray(record.scores, float)
        sign = -1 if procedure.plain.maximize else 1
        if record.trial.status == "diverged":
            return cls(record, int(record.steps[-1]), scores[:, -1].tolist(), (True, 0.0))
        at = _stop(sign * scores)
        if at < scores.shape[1] - 1 and len(scores) > 1:
            others = scores.sum(axis=0) - scores  # of each seed, the sum of the others
            places = (sign * others[:, 1:]).argmin(axis=1) + 1
            chosen = scores[np.arange(len(scores)), places]
        else:
            chosen = scores[:, at]
        return cls(record, int(record.steps[at]), chosen.tolist(), (False, sign * chosen.mean()))

    def is_tied_with(self, other: "_Judged") -> bool:
        """Whether the interval of the difference of scores, seed by seed, holds 0."""
        if other.record.trial.status == "diverged":
            return False
        differences = np.subtract(self.scores, other.scores)
        interval = Interval.of(differences)
        return len(differences) < 2 or interval.low <= 0 <= interval.high


def _stop(costs: np.ndarray) -> int:
    """Return the place of the evaluation at which runs end: the last, or a clearly better one.

    Args:
        costs: (seeds, evaluations) float, lower is better.
    """
    means = costs.mean(axis=0)
    last = means.size - 1
    at = int(np.nanargmin(means[1:])) + 1 if last else 0
    gain = means[last] - means[at]
    if len(costs) > 1:
        noise = float((costs[:, at] - costs[:, last]).std(ddof=1)) / len(costs) ** 0.5
    else:  # from one seed, how much evaluations in the second half differ from their neighbours
        steps = np.diff(means[last // 2 :])
        noise = float(steps.std()) if steps.size > 1 else np.inf
    return at if gain > 2 * noise else last


def _test(procedure: Procedure, best: Record, stop: int, seeds: int) -> list[float] | None:
    """Return the test scores of the winner; None if there is no test split."""
    if "test" not in procedure.plain.splits:
        return None
    if stop == best.steps[-1]:
        return np.asarray(best.test, float).tolist()
    trial = best.trial
    space = {
        key: Range.from_json(entry)
        for key, entry in procedure.done["refinement"].facts["spaces"][trial.optimizer].items()
    }
    again = procedure.train(
        STEP.name,
        procedure.contender(trial.optimizer),
        {trial.number + 1: trial.values},
        space,
        part=stop / best.steps[-1],
        schedule=trial.schedule,
        seeds=seeds_of(procedure, seeds),
        tests=True,
        share=1.1,
    )
    return np.asarray(again[0].test, float).tolist() if again else None


def _name(trial: Any) -> str:
    return f"{trial.optimizer}, {trial.schedule}, rate {number(trial.values[RATE])}"


def _intervals_chart(procedure: Procedure, judged: Sequence[_Judged]) -> Chart:
    sound = [one for one in judged if one.record.trial.status != "diverged"]
    intervals = [Interval.of(one.scores) for one in sound]
    series = Series(
        "mean, and interval of 95%",
        [_name(one.record.trial) for one in sound],
        [i.mean for i in intervals],
        "points",
        [i.low for i in intervals],
        [i.high for i in intervals],
    )
    return Chart("Scores of the candidates", "candidate", procedure.plain.score, [series])


def _heats_table(procedure: Procedure, heats: Sequence[Record]) -> Table:
    order = procedure.ranked(heats)
    return Table(
        "Schedules, one seed",
        {
            "schedule": [r.trial.schedule for r in order],
            "highest rate": [number(r.trial.values[RATE]) for r in order],
            procedure.plain.score: [number(r.trial.score) for r in order],
        },
    )


def _finals_table(procedure: Procedure, judged: Sequence[_Judged]) -> Table:
    best = judged[0]

    def verdict(one: _Judged) -> str:
        if one is best:
            return "best"
        if one.record.trial.status == "diverged":
            return "diverged"
        return "tied" if best.is_tied_with(one) else "worse"

    def score(one: _Judged) -> str:
        return str(Interval.of(one.scores)) if all(map(math.isfinite, one.scores)) else "–"

    trials = [one.record.trial for one in judged]
    return Table(
        "Candidates over seeds",
        {
            "optimizer": [trial.optimizer for trial in trials],
            "schedule": [trial.schedule for trial in trials],
            "values": [_values(trial.values) for trial in trials],
            "updates": [str(one.stop) for one in judged],
            procedure.plain.score: [score(one) for one in judged],
            "": [verdict(one) for one in judged],
        },
        "An interval holds the mean over seeds in 95% of cases. Hyperparameters were chosen on the "
        "same validation split, which favours all candidates somewhat; the test score is not.",
    )


def _values(values: Values) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in values.items())
