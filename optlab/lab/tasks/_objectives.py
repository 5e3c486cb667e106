"""What models learn from examples with labels: to classify, or to predict numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import _checks
from optlab._types import Array, ArrayLike
from optlab.lab.tasks._examples import described


@dataclass(frozen=True)
class Objective:
    """A loss and metrics that are means over examples.

    Attributes:
        who: the public name that errors begin with.
        task_name: the name of the task, for errors.
        score: the metric by which runs are judged.
        maximize: whether a higher score is better.
    """

    who: str
    task_name: str
    score: ClassVar[str] = "loss"
    maximize: ClassVar[bool] = False

    def losses(self, outputs: Array, labels: ArrayLike) -> Array:
        """Return the loss of each example, (batch,)."""
        raise NotImplementedError

    def metrics(self, outputs: Array, labels: ArrayLike) -> dict[str, Array]:
        """Return the metrics, "loss" among them, as means over the examples."""
        raise NotImplementedError

    def check_labels(self, labels: Any) -> None:
        """Require the shape and the type of labels."""
        raise NotImplementedError

    def baseline(self, labels: np.ndarray) -> float:
        """Return the loss of the best guess without inputs."""
        raise NotImplementedError

    def knowing(self, labels: Sequence[Any]) -> Self:
        """Return the objective after a look at labels that are in memory; check them."""
        for array in labels:
            self.check_labels(array)
        return self

    def _refuse_labels(self, required: str, labels: Any, remedy: str) -> NoReturn:
        what = f"the labels of task {self.task_name!r} must be {required}"
        _checks.fail(self.who, what, described(labels), remedy)

    def _refuse_outputs(self, required: str, outputs: Any, remedy: str = "") -> NoReturn:
        what = f"the model of task {self.task_name!r} must return {required}"
        _checks.fail(self.who, what, described(outputs), remedy)

    def _check_float(self, required: str, outputs: Any) -> Array:
        """Require real floating-point outputs; return them as float32 at least."""
        if not hasattr(outputs, "dtype") or not jnp.issubdtype(outputs.dtype, jnp.floating):
            self._refuse_outputs(required, outputs)
        return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


@dataclass(frozen=True)
class Classification(Objective):
    """Cross-entropy of logits (batch, classes) and integer labels (batch,), and accuracy.

    Attributes:
        most: the largest label that is known; −1 if none is.
    """

    most: int = -1
    score: ClassVar[str] = "accuracy"
    maximize: ClassVar[bool] = True

    def losses(self, outputs: Array, labels: ArrayLike) -> Array:
        """Return the cross-entropy of each example, (batch,)."""
        logits = self.logits(outputs, labels)
        # Negative labels would count from the last class. Like too large ones they give NaN.
        labels = jnp.asarray(labels, jnp.int32)
        labels = jnp.where(labels < 0, logits.shape[1], labels)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    def metrics(self, outputs: Array, labels: ArrayLike) -> dict[str, Array]:
        """Return loss and accuracy."""
        losses = self.losses(outputs, labels)
        hits = outputs.argmax(-1) == labels
        return {"loss": losses.mean(), "accuracy": jnp.mean(hits)}

    def logits(self, outputs: Any, labels: Any) -> Array:
        """Return the logits as float32 at least; require those of these labels."""
        self.check_labels(labels)
        required = "logits (batch, classes), floating-point numbers"
        logits = self._check_float(required, outputs)
        if logits.ndim != 2 or len(logits) != len(labels):
            self._refuse_outputs(f"{required}, for labels {described(labels)}", logits)
        if logits.shape[1] < 2:
            remedy = "give it an output for each class, two for yes and no"
            self._refuse_outputs("logits of two classes or more", logits, remedy)
        if logits.shape[1] <= self.most:
            required = f"logits of {self.most + 1} classes, as the largest label is {self.most}"
            self._refuse_outputs(required, logits, "classes count from 0")
        return logits

    def check_labels(self, labels: Any) -> None:
        """Require integers (batch,)."""
        shape, dtype = np.shape(labels), labels.dtype
        if len(shape) != 1 or not jnp.issubdtype(dtype, jnp.integer):
            remedy = "convert them with labels.astype(np.int32)"
            if not shape:
                remedy = "give the loader batches of examples, such as data_set.batch(32)"
            elif len(shape) > 1:
                one_hot = len(shape) == 2 and shape[1] > 1
                remedy = f"pass labels.{'argmax(-1)' if one_hot else 'squeeze(-1)'}"
            self._refuse_labels("integers (batch,)", labels, remedy)

    def baseline(self, labels: np.ndarray) -> float:
        """Return the entropy of the classes, in nats: that is, of their shares as a guess."""
        shares = np.unique(labels, return_counts=True)[1] / len(labels)
        return float(-(shares * np.log(shares)).sum())

    def knowing(self, labels: Sequence[Any]) -> "Classification":
        """Return the objective that knows the largest label; require that none is negative."""
        super().knowing(labels)
        known = [np.asarray(x) for x in labels if not isinstance(x, jax.core.Tracer)]
        least = min((int(x.min()) for x in known), default=0)
        if least < 0:
            what = f"the labels of task {self.task_name!r} must count classes from 0"
            _checks.fail(self.who, what, str(least), "leave out examples without a class")
        return replace(self, most=max((int(x.max()) for x in known), default=-1))


@dataclass(frozen=True)
class Regression(Objective):
    """The squared error of outputs and labels of one shape, (batch, …), and the absolute error."""

    def losses(self, outputs: Array, labels: ArrayLike) -> Array:
        """Return the mean squared error of each example, (batch,)."""
        return _mean_of_each(jnp.square(self._errors(outputs, labels)))

    def metrics(self, outputs: Array, labels: ArrayLike) -> dict[str, Array]:
        """Return the mean squared error as the loss, and the mean absolute error."""
        absolute = jnp.abs(self._errors(outputs, labels))
        return {"loss": self.losses(outputs, labels).mean(), "mae": absolute.mean()}

    def check_labels(self, labels: Any) -> None:
        """Require real numbers (batch, …)."""
        real = any(jnp.issubdtype(labels.dtype, kind) for kind in (jnp.floating, jnp.integer))
        if not np.ndim(labels) or not real:
            remedy = "give the loader batches of examples" if not np.ndim(labels) else ""
            self._refuse_labels("real numbers (batch, …)", labels, remedy)

    def baseline(self, labels: np.ndarray) -> float:
        """Return the variance of the labels around their means over examples."""
        return float(labels.astype(np.float64).var(axis=0).mean())

    def _errors(self, outputs: Any, labels: Any) -> Array:
        self.check_labels(labels)
        required = f"real numbers of the shape of its labels, {list(labels.shape)}"
        outputs = self._check_float(required, outputs)
        if outputs.shape != labels.shape:
            # Broadcasting (n, 1) against (n,) would compare each output with all labels.
            wider = outputs.shape == (*labels.shape, 1)
            remedy = "let it return outputs.squeeze(-1), or pass labels[:, None]" if wider else ""
            self._refuse_outputs(required, outputs, remedy)
        return outputs - labels.astype(outputs.dtype)


def _mean_of_each(values: Array) -> Array:
    """Return the mean over all axes but the first."""
    return values.mean(range(1, values.ndim)) if values.ndim > 1 else values
