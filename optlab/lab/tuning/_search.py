"""Step 4: a coarse search with short runs, of which the best go on.

A quarter of a run is enough to choose which trials go on, if the order after a quarter is about
that at the end. This is checked: a trial from the middle and one from the end of the order go on as
well, and Spearman's rank correlation is taken over all trials that went on. With a budget for many
whole runs, every trial runs to its end, and the correlation is that of their own curves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from optlab.lab.sweeps._domains import check_domains
from optlab.lab.sweeps._recipe import Recipe, traced_types
from optlab.lab.sweeps._search import points
from optlab.lab.sweeps._space import Categorical, Range
from optlab.lab.tasks._check_task import check_task
from optlab.lab.tuning._procedure import (
    BLOCK,
    CONSTANT,
    WHO,
    Contender,
    Outcome,
    Procedure,
    Record,
    Values,
)
from optlab.lab.tuning._result import FAILED, PASSED, WARNING, Chart, Series, Step, Table
from optlab.lab.tuning._space import RATE, REGULARIZATION, at_edge, default_of, space_of
from optlab.lab.tuning._texts import number

STEP = Step("coarse search", "Which hyperparameters train well at all?")

UNTIL = 0.5
"""The part of the budget that is used when this step ends, at most."""

AT_LAST = 0.8
"""The part of the budget that may be used until there is one trial."""

PART = 0.25
"""The part of a run after which trials are chosen to go on."""

PROMOTED = 3
"""One of this many trials goes on, and two more to check the order."""

FEW, MANY = 4, 24
"""The fewest and the most trials of an optimizer."""

QUICK_MANY = 8

BATCH_SIZES = 12
"""The whole runs of an optimizer from which on batch sizes are searched, each of which has its own
program to compile."""

AGREEMENT = 0.5
"""The rank correlation from which on short runs are trusted."""

LEAST = 4
"""The fewest trials over which a rank correlation is told."""

LEARNED = 0.98
"""A model has learned nothing if its validation loss is above this share of that without inputs."""

MEMORIZED = 0.7
"""A model memorizes if its training loss falls below this share of the loss without inputs."""


def coarse_search(procedure: Procedure) -> Outcome:
    """Search the whole space of each optimizer."""
    spaces, records, shorts, parts = {}, [], {}, {}
    for place, contender in enumerate(procedure.contenders):
        # What is left is for those optimizers that have not had their turn.
        left = procedure.meter.left(UNTIL) / (len(procedure.contenders) - place)
        until = (procedure.meter.used + left) / procedure.meter.budget.amount
        key = f"plan/{STEP.name}/{contender.name}"
        plan = procedure.once(key, partial(_plan, procedure, left))
        rate = procedure.done["learning rates"].facts.get(contender.name)
        space = space_of(
            procedure.task, contender.make, procedure.space, rate, procedure.plain_numbers
        )
        if not plan["batch sizes"] and "batch_size" not in procedure.space:
            space.pop("batch_size", None)
        spaces[contender.name] = space
        ended, short = _search(procedure, contender, space, place * BLOCK, plan, until)
        records += ended
        shorts |= short
        parts[contender.name] = plan["part"]
    correlation = _correlation(procedure, records, shorts)
    return _conclude(procedure, spaces, records, shorts, parts, correlation)


def _plan(procedure: Procedure, left: float) -> dict[str, Any]:
    """Return the number of trials and the part of their runs that a share of the budget allows."""
    whole_runs = left / (procedure.pace() * procedure.steps)
    most = QUICK_MANY if procedure.quick else MANY
    batch_sizes = whole_runs >= BATCH_SIZES and not procedure.quick
    if whole_runs >= most:
        return {"trials": most, "part": 1.0, "batch sizes": batch_sizes}
    # n trials cost n·p, and those that go on, n/3 + 2 of them, 1 − p each.
    affordable = (whole_runs - 2 * (1 - PART)) / (PART + (1 - PART) / PROMOTED)
    trials = int(min(most, max(FEW, affordable)))
    return {"trials": trials, "part": PART, "batch sizes": batch_sizes}


def _search(
    procedure: Procedure,
    contender: Contender,
    space: Mapping[str, Range],
    first: int,
    plan: Mapping[str, Any],
    until: float,
) -> tuple[list[Record], dict[int, Record]]:
    """Return the trials that ended, and those of them that ran in parts, by number."""
    values = starting_points(procedure, contender, space, plan["trials"])
    numbered = {first + place: each for place, each in enumerate(values)}
    part = plan["part"]
    options = {"share": until, "keep": part < 1}
    ended = procedure.train(STEP.name, contender, numbered, space, part=part, **options)
    if not ended:  # the steps before took long; without a single trial all later ones are idle
        options["share"] = AT_LAST
        ended = procedure.train(STEP.name, contender, numbered, space, part=part, **options)
    if part == 1:
        return ended, {}
    order = procedure.ranked(ended)
    sound = [record for record in order if record.trial.status != "diverged"]
    chosen = sound[: math.ceil(len(ended) / PROMOTED)]
    rest = sound[len(chosen) :]
    chosen += [rest[len(rest) // 2], rest[-1]] if len(rest) > 1 else rest
    going_on = {record.trial.number: record.trial.values for record in chosen}
    procedure.forget(numbered.keys() - going_on.keys())
    whole = {}
    if going_on:
        on = procedure.train(STEP.name, contender, going_on, space, share=until)
        whole = {record.trial.number: record for record in on}
    stopped = [
        replace(r, trial=replace(r.trial, status="stopped")) if r.trial.status == "complete" else r
        for r in ended
        if r.trial.number not in whole
    ]
    shorts = {r.trial.number: r for r in ended if r.trial.number in whole}
    return [*whole.values(), *stopped], shorts


def starting_points(
    procedure: Procedure, contender: Contender, space: Mapping[str, Range], trials: int
) -> list[Values]:
    """Return the values of trials: first the usual ones, then points that fill the space."""
    usual: dict[str, Any] = {}
    for name, values in space.items():
        usual[name] = _usual(procedure, contender, name, values)
    return [usual, *filling(space, procedure.seed, trials - 1)]


def filling(space: Mapping[str, Range], seed: int, count: int) -> list[Values]:
    """Return points that fill a space evenly; without SciPy, random ones."""
    try:
        return points(space, "halton", seed, range(count))
    except ModuleNotFoundError:
        return points(space, "random", seed, range(count))


def _usual(procedure: Procedure, contender: Contender, name: str, values: Range) -> Any:
    """Return the suggested rate, and the default of other arguments where the range holds it."""
    value = procedure.done["learning rates"].facts.get(contender.name) if name == RATE else None
    for function in (contender.make, procedure.task):
        default = default_of(function, name)
        if value is None and isinstance(default, bool | int | float | str):
            value = default
    if value is None and name in ("dropout", "label_smoothing"):
        value = 0.0
    try:
        values.position(value)
    except (ValueError, TypeError):
        return values.at(0.5)
    return value


def check_spaces(procedure: Procedure) -> None:
    """Require that every optimizer and the task accept the ends of their ranges, and tracers.

    Raises:
        ValueError: they do not.
    """
    for contender in procedure.contenders:
        procedure.plain_numbers |= _plain_numbers(procedure, contender)
        options = procedure.space, None, procedure.plain_numbers
        space = space_of(procedure.task, contender.make, *options)
        recipe, example = _example(procedure, contender, space)
        check_domains(WHO, recipe, space, example)
        source = check_task(WHO, recipe.make_task(example))
        traced_types(recipe, space, example, source and source.example)


def _example(
    procedure: Procedure, contender: Contender, space: Mapping[str, Range]
) -> tuple[Recipe, dict[str, Any]]:
    recipe = procedure.recipe(contender, CONSTANT, tuple(space), procedure.steps)
    return recipe, {name: values.at(0.5) for name, values in space.items()}


def _plain_numbers(procedure: Procedure, contender: Contender) -> set[str]:
    """Return the arguments of the task that `tune` would search, but that cannot be traced."""
    space = space_of(procedure.task, contender.make, procedure.space, None)
    recipe, example = _example(procedure, contender, space)
    plain = set()
    for name in space.keys() & REGULARIZATION.keys() - procedure.space.keys():
        try:
            traced_types(recipe, {name: space[name]}, example)
        except ValueError:
            plain.add(name)
    return plain


def _correlation(
    procedure: Procedure, records: Sequence[Record], shorts: Mapping[int, Record]
) -> dict[str, Any]:
    """Return Spearman's correlation of the order after a part of the run and at its end."""
    pairs = []
    for record in records:
        if record.trial.status != "complete":
            continue
        if record.trial.number in shorts:
            early = shorts[record.trial.number].trial.score
        elif procedure.is_whole(record):
            at = int(np.searchsorted(record.steps, PART * record.steps[-1]))
            early = float(record.scores[:, at].mean())
        else:
            continue
        if math.isfinite(early):
            pairs.append((early, record.trial.score))
    if len(pairs) < LEAST:
        return {"pairs": pairs, "value": None}
    early, late = (_ranks(column) for column in zip(*pairs, strict=True))
    if early.std() == 0 or late.std() == 0:
        return {"pairs": pairs, "value": None}
    return {"pairs": pairs, "value": float(np.corrcoef(early, late)[0, 1])}


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Return the ranks of values; equal values share the mean of theirs."""
    values = np.asarray(values, float)
    order = np.argsort(np.argsort(values, kind="stable"), kind="stable").astype(float)
    return np.array([order[values == value].mean() for value in values])


def _conclude(
    procedure: Procedure,
    spaces: Mapping[str, Mapping[str, Range]],
    records: Sequence[Record],
    shorts: Mapping[int, Record],
    parts: Mapping[str, float],
    correlation: Mapping[str, Any],
) -> Outcome:
    score, total = procedure.plain.score, len(records)
    trusted = correlation["value"] is not None and correlation["value"] >= AGREEMENT
    facts = {
        "spaces": {n: {k: v.to_json() for k, v in space.items()} for n, space in spaces.items()},
        "trusted": trusted,
        "correlation": correlation["value"],
        "stopped": [r.trial.number for r in records if r.trial.status == "stopped"],
    }
    order = procedure.ranked(whole(procedure, records)) or procedure.ranked(records)
    if not order or order[0].trial.status == "diverged":
        evidence = f"None of {total} trials ended with a finite score."
        advice = (
            "Give the rate a lower range, or look at the model and the loss."
            if total
            else "Give a larger budget: not one short run ended."
        )
        return Outcome(replace(STEP, verdict=FAILED, evidence=evidence, advice=advice), facts)
    best = order[0]
    diverged = sum(record.trial.status == "diverged" for record in records)
    evidence = (
        f"{total} trials of {len(spaces)} optimizer{'s' if len(spaces) > 1 else ''}; the best "
        f"{score} is {best.trial.score:.4g}, with {best.trial.optimizer}."
    )
    if diverged:
        evidence += f" {diverged} diverged."
    if shorts or correlation["value"] is not None:
        evidence += f" {_of_correlation(correlation, trusted)}"
    verdict, advice = _learned(procedure, order, spaces)
    losses = [r.trial.loss for r in order if r.trial.status == "complete"]
    if len(losses) >= LEAST and len(set(losses)) == 1:
        verdict = FAILED
        advice = (
            f"All {len(losses)} trials ended with the same loss, to the last bit: the optimizer "
            "does not use what is searched. Its constructor must pass the values on."
        )
    if verdict == PASSED and shorts and correlation["value"] is not None and not trusted:
        verdict = WARNING
        advice = "Short runs do not tell which long ones are good; the refinement makes whole runs."
    charts = [*_charts(procedure, correlation), curves_chart(procedure, records)]
    tables = [_space_table(spaces), trials_table(procedure, order[:10], spaces)]
    step = replace(
        STEP, verdict=verdict, evidence=evidence, advice=advice, charts=charts, tables=tables
    )
    return Outcome(step, facts)


def whole(procedure: Procedure, records: Sequence[Record]) -> list[Record]:
    """Return the records of whole runs."""
    return [record for record in records if procedure.is_whole(record)]


def _of_correlation(correlation: Mapping[str, Any], trusted: bool) -> str:
    value, count = correlation["value"], len(correlation["pairs"])
    if value is None:
        return "Too few trials ran to the end to tell whether short runs predict long ones."
    says = "predicts" if trusted else "does not predict"
    return (
        f"The order after a quarter of the run {says} that at the end (rank correlation "
        f"{value:.2f} over {count} trials)."
    )


def _learned(
    procedure: Procedure, order: Sequence[Record], spaces: Mapping[str, Mapping[str, Range]]
) -> tuple[str, str]:
    """Return a verdict and what to suspect if no trial learned anything that carries over."""
    baseline, splits = procedure.plain.baseline, procedure.plain.splits
    sound = [record for record in order if record.trial.status != "diverged"]
    lowest = min(float(np.nanmin(record.loss.mean(axis=0))) for record in sound)
    # Initial weights may guess well by chance; what is learned must be better than they are.
    initial = min(float(record.loss[:, 0].mean()) for record in sound)
    known = initial if baseline is None else min(baseline, initial)
    chance = _chance(splits["validation"]) if splits else 1 - LEARNED
    if lowest < known - chance * abs(known):
        return PASSED, ""
    verdict = FAILED if lowest >= known - (1 - LEARNED) * abs(known) else WARNING
    trained = min(float(np.nanmin(record.train_loss.mean(axis=0))) for record in sound)
    best = sound[0].trial
    start = (
        f"The lowest validation loss of any trial, at any time of its run, is {number(lowest)}, "
        + (
            f"and the best guess without inputs has {number(baseline)}. "
            if known == baseline
            else f"and the initial weights have {number(known)}. "
        )
    )
    if splits and trained < MEMORIZED * known:
        return verdict, start + (
            f"The training loss does fall, to {number(trained)}: the models memorize. Suspect "
            "labels that do not belong to their inputs, in training or in validation, and splits "
            "of different kinds of data."
        )
    if not splits:
        return verdict, f"{start}Give higher rates, or look at the gradient of the objective."
    at_last = ""
    if RATE in best.values and at_edge(spaces[best.optimizer][RATE], best.values[RATE]) == "upper":
        verdict = WARNING
        at_last = " The best rate is among the highest that were tried; the next step moves them."
    return verdict, (
        f"{start}The training loss does not fall far either, to {number(trained)}. Suspect inputs "
        "that say nothing of the targets, labels that do not belong to their inputs, preprocessing "
        f"that destroys them, or too small a model.{at_last}"
    )


def _chance(validation: Any) -> float:
    """Return the share of the baseline by which a loss is below it by chance, in many trials."""
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(validation) if np.ndim(leaf)}
    examples = next(iter(lengths))[0] if len(lengths) == 1 else math.inf
    return min(0.5, max(1 - LEARNED, 2 / max(examples, 1) ** 0.5))


def _charts(procedure: Procedure, correlation: Mapping[str, Any]) -> list[Chart]:
    if len(correlation["pairs"]) < LEAST:
        return []
    early, late = zip(*correlation["pairs"], strict=True)
    score = procedure.plain.score
    return [
        Chart(
            "Do short runs predict long ones?",
            f"{score} after a quarter of the run",
            f"{score} at the end",
            [Series("trials", list(early), list(late), "points")],
        )
    ]


def curves_chart(procedure: Procedure, records: Sequence[Record], most: int = 8) -> Chart:
    """Return the validation scores over the runs of the best trials."""
    best = procedure.ranked(records)[:most]
    # The score before the first update would take most of the axis.
    series = [
        Series(
            _curve_name(record),
            record.steps[1:].tolist(),
            np.asarray(record.scores, float).mean(axis=0)[1:].tolist(),
        )
        for record in best
    ]
    note = "The score before the first update is not shown."
    if len(best) < len(records):
        note = f"The best {len(best)} of {len(records)} trials. {note}"
    split = "validation " if procedure.plain.splits else ""
    score = f"{split}{procedure.plain.score}"
    return Chart("Learning curves", "update", score, series, note=note)


def _curve_name(record: Record) -> str:
    trial = record.trial
    schedule = "" if trial.schedule == CONSTANT else f", {trial.schedule}"
    return f"{trial.optimizer} {number(trial.values[RATE])}{schedule}"


def _space_table(spaces: Mapping[str, Mapping[str, Range]]) -> Table:
    names = list(dict.fromkeys(name for space in spaces.values() for name in space))
    columns = {"optimizer": list(spaces)}
    columns |= {name: [_text(space.get(name)) for space in spaces.values()] for name in names}
    return Table("The space", columns)


def _text(values: Range | None) -> str:
    if values is None:
        return "–"
    if isinstance(values, Categorical):
        return ", ".join(map(str, values.choices))
    scale = ", logarithmic" if values.log else ""
    return f"{number(values.low)} to {number(values.high)}{scale}"


def trials_table(
    procedure: Procedure, records: Sequence[Record], spaces: Mapping[str, Mapping[str, Range]]
) -> Table:
    """Return a table of trials."""
    names = list(dict.fromkeys(name for space in spaces.values() for name in space))
    columns = {"trial": [str(r.trial.number) for r in records]}
    columns["optimizer"] = [r.trial.optimizer for r in records]
    for name in names:
        columns[name] = [number(r.trial.values.get(name)) for r in records]
    columns[procedure.plain.score] = [number(r.trial.score) for r in records]
    columns["updates"] = [str(r.trial.updates) for r in records]
    return Table("The best trials", columns)
