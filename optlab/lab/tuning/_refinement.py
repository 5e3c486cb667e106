"""Step 5: search around the best, until the seeds differ more than there is left to gain.

The best optimizer, and another one that its seeds cannot tell from it, are searched in rounds. Each
round takes the space around the best trials so far. If the best lies at an edge of the space, the
space is moved beyond it. The rounds end when one of them gained less than the deviation between
seeds, or when the share of the budget is used.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from optlab.lab.sweeps._domains import check_domains
from optlab.lab.sweeps._importance import importances
from optlab.lab.sweeps._space import Categorical, Range
from optlab.lab.tuning._procedure import (
    BLOCK,
    CONSTANT,
    NOISE,
    ROUNDS_FROM,
    WHO,
    Outcome,
    Procedure,
    Record,
)
from optlab.lab.tuning._result import FAILED, PASSED, WARNING, Chart, Series, Step, Table
from optlab.lab.tuning._search import (
    LEARNED,
    curves_chart,
    filling,
    trials_table,
    whole,
)
from optlab.lab.tuning._space import RATE, at_edge, holds, refined
from optlab.lab.tuning._texts import number

STEP = Step("refinement", "Which hyperparameters are best, and how sharply?")

UNTIL = 0.7
"""The part of the budget that is used when this step ends, at most."""

ROUNDS, TRIALS = 4, 8
"""The most rounds, and the trials of each."""

QUICK_ROUNDS, QUICK_TRIALS = 1, 4

BEST = 3
"""The trials around which a round searches."""

SEEDS = 2
"""Further seeds of the best trial, from which the deviation between seeds is taken."""

BINS = 6
"""The parts of a range of which an isolation plot shows the best trial."""


def refine(procedure: Procedure) -> Outcome:
    """Search around the best trials in rounds."""
    stored = procedure.done["coarse search"].facts["spaces"]
    spaces = {
        name: {key: Range.from_json(entry) for key, entry in space.items()}
        for name, space in stored.items()
    }
    records = procedure.of_stage("coarse search")
    order = procedure.ranked(whole(procedure, records) or records)
    if not procedure.is_whole(order[0]):  # no trial of the search ran to its end
        trial = order[0].trial
        contender, space = procedure.contender(trial.optimizer), spaces[trial.optimizer]
        points = {trial.number: trial.values}
        records += procedure.train(STEP.name, contender, points, space, share=UNTIL)
        order = procedure.ranked(whole(procedure, records) or records)
    deviation, further = _deviation(procedure, order[0], spaces)
    best = order[0].trial
    # Where the best rate is the highest that was tried, the runs may only be slow.
    edge = RATE in best.values and at_edge(spaces[best.optimizer][RATE], best.values[RATE])
    if further is not None and edge != "upper" and (lesson := _luck(procedure, further)):
        evidence, advice = lesson
        step = replace(STEP, verdict=FAILED, evidence=evidence, advice=advice)
        return Outcome(step, {"deviation": deviation, "spaces": stored})
    sentences: list[str] = []
    rounds, end = 0, "The budget of this step is used."
    most = QUICK_ROUNDS if procedure.quick else ROUNDS
    while rounds < most:
        best = order[0].trial.score
        plan = procedure.once(
            f"plan/{STEP.name}/{rounds}", partial(_plan, procedure, order, spaces, deviation)
        )
        if not plan:
            break
        sentences += plan["sentences"]
        new = _round(procedure, plan, rounds)
        rounds += 1
        records += new
        order = procedure.ranked(whole(procedure, records) or records)
        for name, space in plan["spaces"].items():
            spaces[name] = {key: Range.from_json(entry) for key, entry in space.items()}
        gain = abs(order[0].trial.score - best)
        if len(new) < sum(plan["trials"].values()):
            break
        if deviation is not None and gain <= deviation and not plan["sentences"]:
            end = (
                f"The last round gained {number(gain)}, and seeds alone differ by "
                f"{number(deviation)}: there is no more to gain by a search."
            )
            break
    else:
        end = "No further round was planned." if rounds == 1 else f"All {rounds} rounds were made."
    return _conclude(procedure, records, order, spaces, deviation, sentences, rounds, end)


def _deviation(
    procedure: Procedure, best: Record, spaces: Mapping[str, Mapping[str, Range]]
) -> tuple[float | None, Record | None]:
    """Return the deviation of the best trial's score between seeds, and its runs from others.

    Both are None if there are no such runs.
    """
    trial = best.trial
    if not procedure.is_whole(best):
        return None, None
    further = procedure.train(
        STEP.name,
        procedure.contender(trial.optimizer),
        {NOISE: trial.values},
        spaces[trial.optimizer],
        seeds=[procedure.seed + 1 + place for place in range(SEEDS)],
        share=UNTIL,
    )
    scores = [score for record in (best, *further) for score in record.trial.scores]
    scores = [score for score in scores if math.isfinite(score)]
    deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    return deviation, further[0] if further else None


def _luck(procedure: Procedure, further: Record) -> tuple[str, str] | None:
    """Return evidence and advice if the best trial is no better than a guess from other seeds.

    The best of many trials may guess well by luck, above all where the data lie in few clusters;
    other seeds do not share that luck.
    """
    baseline = procedure.plain.baseline
    if baseline is None or not procedure.plain.splits:
        return None
    lowest = float(np.nanmin(further.loss.mean(axis=0, dtype=float)))
    if lowest < LEARNED * baseline:
        return None
    evidence = (
        f"From {len(further.loss)} other seeds, the best trial has a validation loss of "
        f"{number(lowest)} at its lowest, and the best guess without inputs has {number(baseline)}."
    )
    advice = (
        "The search was lucky, and nothing was learned. Suspect labels that do not belong to their "
        "inputs, in training or in validation, and splits of different kinds of data."
    )
    return evidence, advice


def _plan(
    procedure: Procedure,
    order: Sequence[Record],
    spaces: Mapping[str, Mapping[str, Range]],
    deviation: float | None,
) -> dict[str, Any]:
    """Return the optimizers of a round, their spaces and numbers of trials; {} for no round."""
    affordable = procedure.meter.left(UNTIL) / (procedure.pace() * procedure.steps)
    trials = min(QUICK_TRIALS if procedure.quick else TRIALS, int(affordable))
    if trials < 2:
        return {}
    names = _in_the_running(order, deviation)
    if trials < 2 * len(names):
        names = names[:1]
    plan: dict[str, Any] = {"spaces": {}, "trials": {}, "sentences": []}
    for name in names:
        own = [record.trial.values for record in order if record.trial.optimizer == name]
        space = spaces[name]
        numbers = sum(not isinstance(values, Categorical) for values in space.values())
        share = max(len(own), 2) ** (-1 / max(1, numbers))
        new, sentences = refined(space, own[:BEST], share)
        if not _accepted(procedure, name, new):
            near = {k: v for k, v in space.items() if holds(v, own[0][k])}
            new = {**space, **{k: v.around([own[0][k]], share) for k, v in near.items()}}
            sentences = []
        plan["spaces"][name] = {key: values.to_json() for key, values in new.items()}
        plan["trials"][name] = trials // len(names)
        plan["sentences"] += [f"{name}: {sentence}" for sentence in sentences]
    return plan


def _accepted(procedure: Procedure, name: str, space: Mapping[str, Range]) -> bool:
    """Whether the optimizer and the task accept the ends of a space that was moved."""
    example = {key: values.at(0.5) for key, values in space.items()}
    contender = procedure.contender(name)
    recipe = procedure.recipe(contender, CONSTANT, tuple(space), procedure.steps)
    try:
        check_domains(WHO, recipe, space, example)
    except ValueError:
        return False
    return True


def _in_the_running(order: Sequence[Record], deviation: float | None) -> list[str]:
    """Return the best optimizer, and the next one if seeds cannot tell them apart."""
    best: dict[str, float] = {}
    for record in order:
        if record.trial.status != "diverged":
            best.setdefault(record.trial.optimizer, record.trial.score)
    names = list(best)
    if len(names) < 2 or deviation is None:
        return names[:1]
    return names[: 2 if abs(best[names[1]] - best[names[0]]) <= 2 * deviation else 1]


def _round(procedure: Procedure, plan: Mapping[str, Any], place_of_round: int) -> list[Record]:
    records = []
    for place, (name, trials) in enumerate(plan["trials"].items()):
        space = {key: Range.from_json(entry) for key, entry in plan["spaces"][name].items()}
        seed = procedure.seed + 1 + place_of_round
        values = filling(space, seed, trials)
        first = ROUNDS_FROM * (place_of_round + 1) + place * BLOCK
        numbered = {first + i: each for i, each in enumerate(values)}
        contender = procedure.contender(name)
        records += procedure.train(STEP.name, contender, numbered, space, share=UNTIL)
    return records


def _conclude(
    procedure: Procedure,
    records: Sequence[Record],
    order: Sequence[Record],
    spaces: Mapping[str, Mapping[str, Range]],
    deviation: float | None,
    sentences: Sequence[str],
    rounds: int,
    end: str,
) -> Outcome:
    best, score = order[0].trial, procedure.plain.score
    values = ", ".join(f"{name} {number(value)}" for name, value in best.values.items())
    spread = "" if deviation is None else f" Seeds differ by {number(deviation)} (deviation)."
    said = "one round" if rounds == 1 else f"{rounds} rounds"
    evidence = (
        f"The best {score} after {said} is {number(best.score)}, by {best.optimizer} with "
        f"{values}.{spread} {' '.join([*sentences, end])}"
    )
    own = [r for r in records if r.trial.optimizer == best.optimizer]
    hull = _hull(spaces[best.optimizer], own)
    charts = [_isolation(procedure, name, values, own) for name, values in hull.items()]
    tables = [trials_table(procedure, order[:10], spaces)]
    if sensitivity := _sensitivity(procedure, hull, own):
        tables.append(sensitivity)
    advice = ""
    if deviation is None:
        advice = "Give a larger budget, from which the deviation between seeds can be measured."
    step = replace(
        STEP,
        verdict=PASSED if rounds and deviation is not None else WARNING,
        evidence=evidence,
        advice=advice,
        charts=[*charts, curves_chart(procedure, order)],
        tables=tables,
    )
    facts = {
        "deviation": deviation,
        "spaces": {n: {k: v.to_json() for k, v in space.items()} for n, space in spaces.items()},
    }
    return Outcome(step, facts)


def _hull(space: Mapping[str, Range], records: Sequence[Record]) -> dict[str, Range]:
    """Return ranges that hold the values of all trials."""
    hull = {}
    for name, values in space.items():
        seen = [r.trial.values[name] for r in records if name in r.trial.values]
        if isinstance(values, Categorical):
            hull[name] = Categorical(tuple(dict.fromkeys((*values.choices, *seen))))
        else:
            low, high = min((values.low, *seen)), max((values.high, *seen))
            hull[name] = replace(values, low=low, high=high)
    return hull


def _isolation(procedure: Procedure, name: str, values: Range, records: Sequence[Record]) -> Chart:
    """Return the best score in each part of a range, whatever the other hyperparameters."""
    sound = [r for r in records if math.isfinite(r.trial.score)]
    xs = [r.trial.values[name] for r in sound]
    scores = [r.trial.score for r in sound]
    best: dict[int, tuple[float, Any]] = {}
    bins = len(values.choices) if isinstance(values, Categorical) else BINS
    for x, score in zip(xs, scores, strict=True):
        place = min(bins - 1, int(bins * values.position(x)))
        if place not in best or procedure.better(score, best[place][0]):
            best[place] = score, x
    line = [best[place] for place in sorted(best)]
    as_axis = str if isinstance(values, Categorical) else float
    series = [
        Series("trials", [as_axis(x) for x in xs], scores, "points"),
        Series(
            "best of its part of the range", [as_axis(x) for _, x in line], [s for s, _ in line]
        ),
    ]
    left_out = len(records) - len(sound)
    return Chart(
        f"Best {procedure.plain.score} against {name}",
        name,
        procedure.plain.score,
        series,
        x_log=values.log,
        note=f"{left_out} trials that diverged are not shown." if left_out else "",
    )


def _sensitivity(
    procedure: Procedure, space: Mapping[str, Range], records: Sequence[Record]
) -> Table | None:
    order = procedure.ranked(records)
    shares = importances(space, [r.trial.values for r in order], np.arange(len(order), dtype=float))
    known = {name: one for name, one in shares.items() if not math.isnan(one.share)}
    if not known:
        return None
    return Table(
        "Sensitivity",
        {
            "hyperparameter": list(known),
            "share of the ranks that it explains alone": [f"{x.share:.2f}" for x in known.values()],
            "sure": ["yes" if x.sure else "no" for x in known.values()],
        },
        "The refinement tries more values near the best, which makes shares smaller than those of "
        "an even search.",
    )
