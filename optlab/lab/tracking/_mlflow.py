"""`mlflow`: curves in MLflow, where each number of an update is written once.

MLflow adds a number to its metric whether or not that has one for this step. So the numbers of a
run that continues are read before the first one is written, and those that are there are left out.
"""

import os
import re
import sys
import time
import weakref
from collections.abc import Mapping
from typing import Any

from optlab import _checks
from optlab._extras import needs_extra
from optlab.lab.sweeps._trial import Trial
from optlab.lab.tracking._common import (
    Points,
    Rows,
    Tracker,
    failures_named,
    plain,
    rows_of_trial,
)

_WHO = "mlflow"

_BATCH = 1000
"""The most metrics that MLflow takes at once; of parameters it takes a tenth of that."""


def mlflow(
    *,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    run_name: str | None = None,
    run_id: str | None = None,
    resume: bool = False,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
) -> Tracker:
    """Write curves to MLflow: of a run, of the trials of a sweep, or of your own loop.

    The MLflow run begins with the first number, and ends with `close`, at the end of a `with`
    block, or with the process. Without `run_name` and `run_id`, the numbers go to the run that is
    active, if there is one; it is left open.

    A run that continues from a checkpoint may continue its MLflow run, by `run_id` or `resume`:
    numbers that are there are not written again. MLflow cannot replace a number, so it shows both
    if the run goes another way from an earlier update.

    Each trial of a sweep is a nested run, with its values as parameters, its score as a metric and
    its status as a tag.

    Args:
        tracking_uri: where to write, such as "sqlite:///mlflow.db" or the address of a server;
            None for the one that is set in MLflow.
        experiment: the name of the experiment, which is created if it does not exist; None for the
            one that is set in MLflow.
        run_name: the name of the run; None for one that MLflow makes up.
        run_id: the run to continue; None for another one.
        resume: whether to continue the latest run of the experiment that is called `run_name`, if
            there is one.
        params: name → value, logged once as the parameters of the run.
        tags: name → text, set as the tags of the run.

    Returns:
        A tracker: a callback of `train` and `sweep`, or a function of a dictionary and a step.

    Raises:
        ModuleNotFoundError: mlflow is not installed.
        ValueError: `resume` without `run_name`, or together with `run_id`.
    """
    with needs_extra(_WHO, "mlflow"):
        import mlflow as library  # noqa: F401

    if _checks.check_flag(_WHO, "resume", resume) and (run_name is None or run_id is not None):
        _checks.fail(
            _WHO,
            "resume must come with run_name, and without run_id",
            f"run_name={run_name!r} and run_id={run_id!r}",
        )
    return _MLflow(tracking_uri, experiment, run_name, run_id, resume, params or {}, tags or {})


class _MLflow(Tracker):
    def __init__(
        self,
        tracking_uri: str | None,
        experiment: str | None,
        run_name: str | None,
        run_id: str | None,
        resume: bool,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
    ):
        super().__init__(_WHO)
        self._uri, self._experiment = tracking_uri, experiment
        self._name, self._run_id, self._resume = run_name, run_id, resume
        self._params, self._tags = params, tags
        self._client: Any = None
        self._points = Points("d")

    def _write_rows(self, rows: Rows) -> None:
        with _failures_named():
            self._start()
            new = {
                step: {
                    name: value
                    for name, value in _valid(row).items()
                    if not self._points.has(name, step, value)
                }
                for step, row in rows.items()
            }
            self._log(self._run_id, new)
            for step, row in new.items():
                for name, value in row.items():
                    self._points.add(name, step, value)

    def _write_trial(self, trial: Trial) -> None:
        with _failures_named():
            self._start()
            tags = {"mlflow.parentRunId": self._run_id, "status": trial.status}
            run = self._client.create_run(
                self._experiment_id, run_name=f"trial-{trial.number}", tags=tags
            )
            self._log_params(run.info.run_id, trial.values)
            rows = rows_of_trial(trial)
            rows[trial.num_updates]["score"] = trial.score
            self._log(run.info.run_id, {step: _valid(row) for step, row in rows.items()})
            self._client.set_terminated(run.info.run_id, "FINISHED")

    def _start(self) -> None:
        """Find or create the run, once."""
        if self._client is not None:
            return
        import mlflow as library

        client = library.MlflowClient(self._uri)
        active = library.active_run()
        if active is not None and self._name is None and self._run_id is None:
            self._run_id, self._is_ours = active.info.run_id, False
        else:
            self._run_id, self._is_ours = self._run_id or self._found(client), True
        if self._run_id is None:
            run = client.create_run(self._experiment_of(client), run_name=self._name)
        else:
            run = client.get_run(self._run_id)
            for name in run.data.metrics:
                for metric in client.get_metric_history(self._run_id, name):
                    self._points.add(name, metric.step, metric.value)
        self._check_params(run.data.params)
        self._run_id, self._experiment_id = run.info.run_id, run.info.experiment_id
        self._client = client
        if self._is_ours:
            client.update_run(self._run_id, status="RUNNING")
            self._terminate = weakref.finalize(self, client.set_terminated, self._run_id)
        self._log_params(self._run_id, self._params)
        for name, text in self._tags.items():
            client.set_tag(self._run_id, name, text)

    def _experiment_of(self, client: Any) -> str:
        name = self._experiment
        if name is None:
            # `mlflow.set_experiment` sets the first variable.
            if number := os.environ.get("MLFLOW_EXPERIMENT_ID"):
                return number
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        experiment = client.get_experiment_by_name(name)
        return experiment.experiment_id if experiment else client.create_experiment(name)

    def _found(self, client: Any) -> str | None:
        """Return the run to continue by its name; None if there is none."""
        if not self._resume:
            return None
        quote = '"' if "'" in str(self._name) else "'"
        runs = client.search_runs(
            [self._experiment_of(client)],
            filter_string=f"attributes.run_name = {quote}{self._name}{quote}",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        return runs[0].info.run_id if runs else None

    def _check_params(self, before: Mapping[str, str]) -> None:
        """Require the parameters that the run has, which MLflow never changes."""
        for name, value in plain(self._params).items():
            if before.get(name, str(value)) != str(value):
                _checks.fail(
                    _WHO,
                    f"params must be those of the run, with {name}={before[name]}",
                    f"{name}={value}",
                    "begin another run",
                )

    def _log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        entries = [Param(name, str(value)) for name, value in plain(params).items()]
        for first in range(0, len(entries), _BATCH // 10):
            self._client.log_batch(run_id, params=entries[first : first + _BATCH // 10])

    def _log(self, run_id: str, rows: Rows) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        metrics = [
            Metric(name, value, now, step)
            for step, row in rows.items()
            for name, value in row.items()
        ]
        for first in range(0, len(metrics), _BATCH):
            self._client.log_batch(run_id, metrics=metrics[first : first + _BATCH])

    def _finish(self, error: BaseException | None) -> None:
        if self._client is None or not self._is_ours:
            return
        self._terminate.detach()
        status = "FINISHED" if error is None else "FAILED"
        if isinstance(error, KeyboardInterrupt):
            status = "KILLED"
        with _failures_named():
            self._client.set_terminated(self._run_id, status)


def _valid(row: Mapping[str, float]) -> dict[str, float]:
    """Return numbers under names that MLflow takes, and with values that it returns unchanged."""
    largest = sys.float_info.max  # in place of infinity, as in MLflow's databases
    return {
        re.sub(r"[^\w\-. :/]", "_", name): value
        if value != value
        else min(max(value, -largest), largest)
        for name, value in row.items()
    }


def _failures_named() -> Any:
    from mlflow.exceptions import MlflowException

    return failures_named(_WHO, MlflowException)
