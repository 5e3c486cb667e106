"""`EnsembleReport`: how good an ensemble is beside its members, as a table, a figure and JSON."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from optlab._report import Spread, aligned, number, strict, versions
from optlab._types import Array
from optlab.lab.ensembles._calibration import (
    Reliability,
    Scores,
    fit_temperature,
    reliability,
    scores,
)
from optlab.lab.ensembles._combine import HOW, combine_log_probs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADINGS = {"error": "error", "nll": "NLL", "brier": "Brier", "ece": "ECE"}
"""The heading of each score in a table."""


@dataclass(frozen=True, eq=False)
class EnsembleReport:
    """The scores of an ensemble and of its members on one split.

    Attributes:
        task: the task's name.
        split: the split that was judged on.
        labels: what each member is.
        members: the scores of each member, arrays (members,).
        combined: "probability" and "logit" → the scores of the ensemble by that mean.
        temperatures: "probability" and "logit" → the temperature that is best on the validation
            split; None if log-probabilities there are not finite.
        calibrated: like `combined`, after the log-probabilities are divided by the temperature.
        gain: "probability" and "logit" → the scores against the number of members, arrays
            (members,), from 1 to all. For m members it is the mean over all groups of m neighbours
            in the circle of members; for snapshots, the scores of the last m.
        diagrams: "probability", "logit" and "members" → the bins of the reliability diagram; that
            of the members has the predictions of all.
    """

    task: str
    split: str
    labels: tuple[str, ...]
    members: Scores
    combined: Mapping[str, Scores]
    temperatures: Mapping[str, float | None]
    calibrated: Mapping[str, Scores]
    gain: Mapping[str, Scores]
    diagrams: Mapping[str, Reliability]

    def table(self) -> str:
        """Return the scores as aligned text, followed by notes."""
        rows = {"members": _cells(self.members, lambda scores: str(Spread.of(scores)))}
        rows["worst member"] = _cells(self.members, _largest)
        for how in HOW:
            rows[f"{how} mean"] = _cells(self.combined[how], _largest)
        for how, temperature in self.temperatures.items():
            if temperature is not None:
                name = f"{how} mean, T = {temperature:.3g}"
                rows[name] = _cells(self.calibrated[how], _largest)
        columns = {"": list(rows)}
        for place, name in enumerate(Scores._fields):
            columns[HEADINGS[name]] = [row[place] for row in rows.values()]
        return "\n\n".join(filter(None, ("\n".join(aligned(columns)), "\n".join(self._notes()))))

    def __str__(self) -> str:
        first, *others = self.labels
        which = f"{len(self.labels)} models ({first} to {others[-1]})" if others else first
        return f"{self.task}: {which} on the split {self.split!r}\n\n{self.table()}"

    def plot(self) -> "Figure":
        """Draw reliability and gain; see `optlab.plots.plot_ensemble`.

        Raises:
            ModuleNotFoundError: Matplotlib is not installed.
        """
        from optlab.plots import plot_ensemble

        return plot_ensemble(self)

    def to_json(self, **extra: Any) -> str:
        """Return everything as strict JSON; a number that is not finite is null.

        Args:
            extra: further entries, such as the options of the call.
        """
        document = {
            name: jax.tree.map(np.asarray, _plain(value)) for name, value in vars(self).items()
        }
        document["versions"] = versions("optlab", "jax", "jaxlib", "optax", "flax", "numpy")
        return json.dumps(strict({**extra, **document}), allow_nan=False)

    def _notes(self) -> Iterator[str]:
        finite = np.isfinite(self.members.nll)
        if not finite.all():
            bad = [self.labels[place] for place in np.flatnonzero(~finite)]
            rest = f"Leave out what diverged: ensemble[{np.flatnonzero(finite).tolist()}]."
            yield f"Not finite: {', '.join(bad)}. {rest if finite.any() else 'No member is left.'}"
        if self.split == "validation":
            yield "The temperatures were fitted on the same examples, and flatter the ensemble."


def make_report(
    task: str,
    split: str,
    labels: Sequence[str],
    fitted_on: tuple[Array, Array],
    judged_on: tuple[Array, Array],
    bins: int,
    *,
    ordered: bool,
) -> EnsembleReport:
    """Return the report of an ensemble.

    Args:
        task: the task's name.
        split: the split that is judged on.
        labels: what each member is.
        fitted_on: logits (members, n, classes) and labels (n,) of the validation split.
        judged_on: the same of the split that is judged on.
        bins: bins of the calibration error.
        ordered: whether the members are snapshots of one run.
    """
    members, classes = len(labels), judged_on[1]
    groups = _groups(members, ordered)
    rows = np.concatenate([np.eye(members, dtype=bool), groups.reshape(-1, members)])
    judged = {how: jax.device_get(_judge(*judged_on, rows, how == "logit", bins)) for how in HOW}
    alone, bins_alone = (_rows(part, slice(members)) for part in judged["probability"])
    gain = {
        how: Scores(*(score[members:].reshape(groups.shape[:2]).mean(1) for score in of_rows))
        for how, (of_rows, _) in judged.items()
    }
    diagrams = {how: _rows(bins_of, -1) for how, (_, bins_of) in judged.items()}
    log_probs, unseen = (
        jax.device_get(_combine(logits)) for logits in (judged_on[0], fitted_on[0])
    )
    temperatures = {how: _temperature(unseen[how], fitted_on[1]) for how in HOW}
    calibrated = {
        how: jax.device_get(_scores(log_probs[how] / np.float32(temperature), classes, bins))
        for how, temperature in temperatures.items()
        if temperature is not None
    }
    return EnsembleReport(
        task=task,
        split=split,
        labels=tuple(labels),
        members=alone,
        combined={how: _rows(gain[how], -1) for how in HOW},
        temperatures=temperatures,
        calibrated=calibrated,
        gain=gain,
        diagrams={**diagrams, "members": _together(bins_alone)},
    )


@partial(jax.jit, static_argnums=4)
def _judge(
    logits: Array, labels: Array, groups: Array, by_logit: Array, bins: int
) -> tuple[Scores, Reliability]:
    """Return scores and diagram of each group (groups, members) of members, one after the other."""
    log_probs = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))

    def of_group(group: Array) -> tuple[Scores, Reliability]:
        where = group[:, None, None]
        total = jax.nn.logsumexp(log_probs, axis=0, where=where)
        mean = jnp.where(where, log_probs, 0).sum(0) / group.sum()
        # Both functions normalize, so that the number of members need not be subtracted.
        combined = jnp.where(by_logit, mean, total)
        return scores(combined, labels, bins), reliability(combined, labels, bins)

    return jax.lax.map(of_group, groups)


def _rows(arrays: Any, rows: int | slice) -> Any:
    """Return some rows of each array in a named tuple."""
    return type(arrays)(*(array[rows] for array in arrays))


def _together(diagrams: Reliability) -> Reliability:
    """Return the diagram of the predictions of all members, from one of each, (members, bins)."""
    confidence, accuracy, share = diagrams
    total = np.maximum(share.sum(0), np.finfo(share.dtype).tiny)
    return Reliability(
        (confidence * share).sum(0) / total, (accuracy * share).sum(0) / total, share.mean(0)
    )


@jax.jit
def _combine(logits: Array) -> dict[str, Array]:
    return {how: combine_log_probs(logits, how=how) for how in HOW}


_scores = jax.jit(scores, static_argnums=2)


def _temperature(log_probs: Array, labels: Array) -> float | None:
    return fit_temperature(log_probs, labels) if np.isfinite(log_probs).all() else None


def _groups(members: int, ordered: bool) -> np.ndarray:
    """Return the groups of 1 to all members that are judged: (members, groups, members) bool."""
    place, first = np.arange(members), np.arange(1 if ordered else members)
    size = np.arange(1, members + 1)[:, None, None]
    if ordered:
        return np.broadcast_to(place >= members - size, (members, 1, members))
    return (place - first[:, None]) % members < size


def _cells(scores: Scores, text: Callable[[np.ndarray], str]) -> list[str]:
    """Return the texts of a row; the error of predictions that are not finite means nothing."""
    finite = np.isfinite(scores.nll).all()
    return [text(np.asarray(score)) if finite else "–" for score in scores]


def _largest(score: np.ndarray) -> str:
    return number(float(np.max(score)))


def _plain(value: Any) -> Any:
    """Turn named tuples into dictionaries, wherever they are."""
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    return value._asdict() if hasattr(value, "_asdict") else value
