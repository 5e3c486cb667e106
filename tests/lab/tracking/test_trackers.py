"""TensorBoard, Weights & Biases and MLflow: what is written of a run, and that it is there once."""

import contextlib
import json
import struct
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optlab
from optlab.lab import Evaluation, LogUniform, Task, Trial, mlflow, sweep, tensorboard, train, wandb
from optlab.lab.tracking import _wandb
from optlab.lab.tracking._common import Points

# What MLflow and the libraries that it stands on warn of when they are imported is theirs.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """Keep W&B and MLflow off the network, and MLflow's files in the folder of the test."""
    for name, text in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        # A store in files is there at once; to set up a database takes MLflow seconds.
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_TRACKING_URI": f"file://{tmp_path / 'mlruns'}",
    }.items():
        monkeypatch.setenv(name, text)


def parabola():
    return Task(
        name="parabola",
        init=lambda key: (jnp.array(2.0), ()),
        loss=lambda x, state, batch, key: (x**2, state),
        batch=lambda key, step: (),
        evaluate=lambda x, state, data: {"loss": x**2},
    )


def evaluation(step, losses=(), rate=0.5, **metrics):
    """Return an evaluation whose losses are those of the updates before it."""
    return Evaluation(
        step=step,
        steps=9,
        losses=np.array(losses, np.float32),
        learning_rate=rate if step else None,
        train={},
        validation=metrics,
        monitored={},
        seconds=1.0,
    )


def trial(number=3, **changes):
    fields = {
        "values": {"learning_rate": 0.5, "nesterov": np.True_, "activation": jnp.tanh, "size": 7},
        "status": "complete",
        "steps": np.array([0, 2]),
        "train_loss": np.array([[np.nan, 1.0], [np.nan, 3.0]]),
        "validation": {"loss": np.array([[4.0, 0.5], [6.0, 1.5]])},
        "score": 1.0,
    }
    return Trial(number, **{**fields, **changes})


def tensorboard_points(folder):
    """Return the points (name, step, value) of the event files in a folder, oldest first."""
    from tensorboardX.proto.event_pb2 import Event

    points = []
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])  # a checksum follows, and one after the event
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            points += [
                (value.tag, event.step, value.simple_value)
                for value in event.summary.value
                if value.HasField("simple_value")
            ]
            if event.session_log.status:
                points.append(("START", event.step, None))
    return points


def wandb_records(folder, run="*"):
    """Return the records in the files of W&B's runs, oldest first."""
    records = []
    for path in sorted(folder.glob(f"wandb/offline-run-*/run-{run}.wandb")):
        for _ in range(500):
            new = [*_wandb._records(path)]
            if any(record.HasField("exit") for record in new):
                break
            time.sleep(0.01)  # W&B may write the end of a file after the run has finished
        records += new
    return records


def wandb_points(folder, run="*"):
    """Return the points (name, step, value) of W&B's runs, oldest first."""
    return [
        (
            item.key or "/".join(item.nested_key),
            record.history.step.num,
            json.loads(item.value_json),
        )
        for record in wandb_records(folder, run)
        for item in record.history.item
        if not "/".join(item.nested_key).startswith("_")
    ]


def mlflow_points(run):
    """Return the points (name, step, value) of a run in MLflow, oldest first."""
    from mlflow import MlflowClient

    return [
        (name, metric.step, metric.value)
        for name in run.data.metrics
        for metric in MlflowClient().get_metric_history(run.info.run_id, name)
    ]


def mlflow_runs():
    """Return the runs in MLflow by their names."""
    from mlflow import MlflowClient

    return {run.info.run_name: run for run in MlflowClient().search_runs(["0"])}


LOGGED = [
    *(("loss", step, float(np.float32(1 / step))) for step in range(1, 5)),
    *(("validation/loss", step, 1.0 + step) for step in (0, 2, 4)),
    *(("learning_rate", step, 0.5) for step in (2, 4)),
]
"""The points of the evaluations that `follow_a_run` passes on."""


def follow_a_run(tracker, first=0, last=4):
    for step in range(first, last + 1, 2):
        losses = [1 / update for update in range(step - 1, step + 1)] if step else []
        tracker(evaluation(step, losses, loss=1.0 + step))


def read_all(folder):
    """Return the points of the one run that each tracker followed, without an order."""
    (run,) = mlflow_runs().values()
    points = tensorboard_points(folder), wandb_points(folder), mlflow_points(run)
    return [sorted(each) for each in points]


def trackers(folder):
    return tensorboard(folder), wandb(id="one", dir=folder), mlflow(run_name="one", resume=True)


# Runs


def test_a_run_that_continues_in_another_process_has_each_point_once(tmp_path):
    # The second trackers stand for those of a new process; they see an evaluation that was written.
    for first, last in ((0, 2), (2, 4)):
        for tracker in trackers(tmp_path):
            with tracker:
                follow_a_run(tracker, first, last)
    assert read_all(tmp_path) == [sorted(LOGGED)] * 3


def test_a_run_that_continues_with_the_same_trackers_has_each_point_once(tmp_path):
    for tracker in trackers(tmp_path):
        with tracker:
            follow_a_run(tracker)
            follow_a_run(tracker, 2)
    assert read_all(tmp_path) == [sorted(LOGGED)] * 3


def test_train_and_its_checkpoints_leave_each_point_once(tmp_path):
    for steps in (4, 6, 6):
        with tensorboard(tmp_path) as board, wandb(id="one", dir=tmp_path) as rows:
            run = train(
                parabola(),
                optlab.sgd(0.25),
                steps=steps,
                key=jax.random.key(0),
                eval_every=2,
                checkpoints=tmp_path / "checkpoints",
                callbacks=[board, rows],
            )
    losses = [*enumerate(run.history.loss.tolist(), start=1)]
    for points in (tensorboard_points(tmp_path), wandb_points(tmp_path)):
        assert [point[1:] for point in points if point[0] == "loss"] == losses
        assert [step for name, step, _ in points if name == "validation/loss"] == [0, 2, 4, 6]


def test_numbers_that_are_not_finite_are_written_once_too(tmp_path):
    for _ in range(2):
        for tracker in (tensorboard(tmp_path), mlflow(run_name="one", resume=True)):
            with tracker:
                tracker(evaluation(3, [np.nan, np.inf, 1e30], loss=1e300))
    (run,) = mlflow_runs().values()
    largest = sys.float_info.max  # MLflow's databases have no infinity
    for points, infinity, huge in (
        (tensorboard_points(tmp_path), np.inf, np.inf),
        (mlflow_points(run), largest, 1e300),
    ):
        values = {(name, step): value for name, step, value in points}
        assert len(values) == len(points) == 5
        np.testing.assert_equal(values["loss", 1], np.nan)
        assert values["loss", 2] == infinity
        assert values["validation/loss", 3] == huge


# Loops of the user's own


def test_a_loop_of_ones_own_writes_nested_numbers_of_any_library(tmp_path):
    for tracker in trackers(tmp_path):
        numbers = {
            "loss": jnp.bfloat16(0.5),
            "train": {"accuracy": np.float64(0.25), "top": {"5": 1}},
        }
        with tracker:
            tracker(numbers, step=np.int64(7))
            tracker({"more": True}, step=jnp.int32(7))
    points = [("loss", 7, 0.5), ("more", 7, 1.0), ("train/accuracy", 7, 0.25)]
    assert read_all(tmp_path) == [[*points, ("train/top/5", 7, 1.0)]] * 3


@pytest.mark.parametrize("make", [tensorboard, lambda _: wandb(), lambda _: mlflow()])
@pytest.mark.parametrize(
    ("record", "step", "message"),
    [
        ({"a": {"b": np.ones(2)}}, 0, r"a/b must be a scalar, got shape \(2,\); pass its mean"),
        ({"a": jnp.ones(1)}, 0, r"a must be a scalar, got shape \(1,\)"),
        ({"a": "high"}, 0, "a must be a real scalar, got 'high'"),
        ({"a": None}, 0, "a must be a real scalar, got None"),
        ({"a": 1j}, 0, "a must be a real scalar, got 1j"),
        ({"a": [[1], 2]}, 0, "a must be a real scalar, got "),
        ({3: 1.0}, 0, "names must be texts that are not empty, got 3"),
        ({"a": 1.0}, None, "step must be an integer >= 0, got step=None"),
        ({"a": 1.0}, -1, "step must be an integer >= 0, got step=-1"),
        (0.5, 3, r"a record must be an Evaluation, .*, got 0.5; pass {\"loss\": loss}"),
        (evaluation(0), 3, "step must be left out .* type Evaluation, got step=3"),
    ],
)
def test_what_a_tracker_cannot_write_is_refused_by_its_name(tmp_path, make, record, step, message):
    with pytest.raises(ValueError, match=f"^(tensorboard|wandb|mlflow): {message}"):
        make(tmp_path)(record, step=step)


def test_a_number_within_a_compiled_function_is_refused(tmp_path):
    tracker = tensorboard(tmp_path)
    with pytest.raises(ValueError, match="loss must be a number that is known, got a traced one"):
        jax.jit(lambda loss: tracker({"loss": loss}, step=1))(0.5)


def test_a_tracker_that_is_closed_says_so(tmp_path):
    for tracker in trackers(tmp_path):
        tracker.close()
        tracker.close()
        with pytest.raises(ValueError, match=": the tracker must be open, got a closed one; make"):
            tracker({"loss": 1.0}, step=1)


# TensorBoard


def test_tensorboard_has_the_points_when_the_call_returns(tmp_path):
    tracker, counts = tensorboard(tmp_path / "new" / "folder"), []
    for step in (0, 2, 4):
        follow_a_run(tracker, step, step)
        counts.append(len(tensorboard_points(tmp_path / "new" / "folder")))
    assert counts == [1, 5, 9]
    tracker.close()


def test_tensorboard_replaces_the_points_from_where_a_run_goes_another_way(tmp_path):
    with tensorboard(tmp_path) as tracker:
        for step in (1, 2, 3):
            tracker({"loss": 1.0, "other": 1.0}, step=step)
    with tensorboard(tmp_path) as tracker:
        tracker({"third": 1.0}, step=2)
        tracker({"loss": 2.0, "other": 1.0}, step=2)
        tracker({"loss": 1.0}, step=3)
    again = tensorboard_points(tmp_path)[6:]
    # TensorBoard drops what precedes START from its step on, so all of the step is written again.
    assert again == [
        ("third", 2, 1.0),
        ("START", 2, None),
        ("third", 2, 1.0),
        ("loss", 2, 2.0),
        ("other", 2, 1.0),
        ("loss", 3, 1.0),
    ]
    with tensorboard(tmp_path) as tracker:
        tracker({"loss": 2.0}, step=2)
        tracker({"other": 1.0}, step=3)
    assert tensorboard_points(tmp_path)[12:] == [("other", 3, 1.0)]


def test_tensorboard_continues_after_a_record_that_a_killed_process_left_short(tmp_path):
    with tensorboard(tmp_path) as tracker:
        tracker({"loss": 1.0}, step=1)
        tracker({"loss": 2.0}, step=2)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    with tensorboard(tmp_path) as tracker:
        tracker({"loss": 1.0}, step=1)
        tracker({"loss": 2.0}, step=2)
    path.unlink()
    assert tensorboard_points(tmp_path) == [("loss", 2, 2.0)]


def test_a_folder_that_tensorboard_cannot_use_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"^tensorboard: folder must be .*test_trackers.py: "):
        tensorboard(__file__)
    with pytest.raises(
        ValueError, match=r"^tensorboard: folder must be a folder on this machine, got .gs://a"
    ):
        tensorboard("gs://a")
    monkeypatch.setenv("HOME", str(tmp_path))
    tensorboard("~/runs")
    assert (tmp_path / "runs").is_dir()


def test_only_the_first_of_several_processes_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with tensorboard(tmp_path) as tracker:
        follow_a_run(tracker)
    assert list(tmp_path.iterdir()) == []


# Weights & Biases


def test_wandb_follows_one_run_and_fails_by_name(tmp_path):
    with wandb(id="one", dir=tmp_path) as tracker:
        follow_a_run(tracker)
        with pytest.raises(ValueError, match=r"^wandb: a tracker must follow one run, got"):
            follow_a_run(tracker)
    with pytest.raises(ValueError, match=r"^wandb: the arguments must be those of .*, got projct"):
        wandb(projct="digits")
    with pytest.raises(RuntimeError, match=r"^wandb: "):
        wandb(id="a/b", dir=tmp_path)({"loss": 1.0}, step=0)


def test_wandb_without_arguments_writes_into_the_active_run(tmp_path):
    import wandb as library

    active = library.init(id="mine", dir=tmp_path)
    with wandb() as tracker:
        tracker({"loss": 0.5}, step=3)
    active.log({"loss": 0.25}, step=4)
    active.finish()
    assert wandb_points(tmp_path, "mine") == [("loss", 3, 0.5), ("loss", 4, 0.25)]


def test_wandb_leaves_out_the_rows_that_its_server_has(tmp_path, monkeypatch):
    import wandb as library

    # A run that continues online: W&B sets `step` to the one after its last row.
    rows, resumed = [], library.init(mode="disabled")
    monkeypatch.setattr(type(resumed), "step", 3)
    monkeypatch.setattr(type(resumed), "log", lambda run, row, step: rows.append(step))
    monkeypatch.setattr(_wandb._WandB, "_new_run", lambda tracker, **init: resumed)
    follow_a_run(wandb(id="one"))
    assert rows == [3, 4]


# MLflow


def test_mlflow_has_the_status_parameters_and_tags_of_a_run():
    with mlflow(run_name="it's", params={"width": 3}, tags={"data": "digits"}) as tracker:
        tracker({"|g|": 1.0}, step=0)
    run = mlflow_runs()["it's"]
    assert (run.data.params, run.data.tags["data"]) == ({"width": "3"}, "digits")
    assert (run.data.metrics, run.info.status) == ({"_g_": 1.0}, "FINISHED")
    with (
        pytest.raises(ValueError, match=r"^mlflow: params must be .* width=3, got width=4; begin"),
        mlflow(run_name="it's", resume=True, params={"width": 4}) as tracker,
    ):
        tracker({"|g|": 1.0}, step=0)
    with (
        contextlib.suppress(KeyboardInterrupt),
        mlflow(run_id=run.info.run_id, params={"width": 3, "depth": 2}) as tracker,
    ):
        tracker({"|g|": 0.5}, step=1)
        raise KeyboardInterrupt
    run = mlflow_runs()["it's"]
    assert (run.data.params, run.info.status) == ({"width": "3", "depth": "2"}, "KILLED")


def test_mlflow_without_names_writes_into_the_active_run():
    import mlflow as library

    with library.start_run(run_name="mine"), mlflow() as tracker:
        tracker({"loss": 0.5}, step=3)
        tracker.close()
        assert mlflow_runs()["mine"].info.status == "RUNNING"
    assert mlflow_points(mlflow_runs()["mine"]) == [("loss", 3, 0.5)]


def test_mlflow_fails_by_name():
    with pytest.raises(ValueError, match=r"^mlflow: resume must come with run_name, and without"):
        mlflow(resume=True)
    with pytest.raises(RuntimeError, match=r"^mlflow: "):
        mlflow(run_id="0" * 32)({"loss": 1.0}, step=0)


@pytest.mark.slow
def test_mlflow_writes_into_a_database(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    for _ in range(2):
        with mlflow(run_name="one", resume=True) as tracker:
            tracker({"loss": np.inf, "none": np.nan}, step=1)
    points = mlflow_points(mlflow_runs()["one"])
    assert [point[:2] for point in points] == [("loss", 1), ("none", 1)]
    np.testing.assert_equal([value for *_, value in points], [sys.float_info.max, np.nan])


# Sweeps


MEANS = [("train/loss", 2, 2.0), ("validation/loss", 0, 5.0), ("validation/loss", 2, 1.0)]
"""The points of `trial()`, as means over its seeds."""


def test_tensorboard_has_a_folder_for_each_trial_with_its_hyperparameters(tmp_path):
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    with tensorboard(tmp_path) as tracker:
        tracker(trial())
    folder = tmp_path / "trial-0003"
    assert sorted(tensorboard_points(folder)) == MEANS
    (path,) = folder.iterdir()
    data, started = path.read_bytes(), {}
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        for value in Event.FromString(data[12 : 12 + length]).summary.value:
            content = HParamsPluginData.FromString(value.metadata.plugin_data.content)
            started |= dict(content.session_start_info.hparams)
        data = data[16 + length :]
    assert {name: value.WhichOneof("kind") for name, value in started.items()} == {
        "learning_rate": "number_value",
        "nesterov": "bool_value",
        "activation": "string_value",
        "size": "number_value",
        "status": "string_value",
    }
    assert started["learning_rate"].number_value == 0.5


def test_wandb_has_a_run_for_each_trial_with_its_hyperparameters(tmp_path):
    with wandb(id="search", dir=tmp_path, config={"width": 3}) as tracker:
        tracker(trial(4, status="diverged", score=np.nan))
        tracker(trial())
    assert sorted(wandb_points(tmp_path, "search-3")) == MEANS
    for number, summary in ((3, {"status": "complete", "score": 1.0}), (4, {"status": "diverged"})):
        records, own, config = wandb_records(tmp_path, f"search-{number}"), {}, {}
        for record in records:
            own |= {item.key: json.loads(item.value_json) for item in record.summary.update}
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            config |= {item.key: json.loads(item.value_json) for item in record.config.update}
        assert own.items() >= summary.items()
        assert {record.run.run_group for record in records if record.HasField("run")} == {"search"}
        assert {name: value for name, value in config.items() if name != "_wandb"} == {
            "width": 3,
            "learning_rate": 0.5,
            "nesterov": True,
            "activation": "tanh",
            "size": 7,
        }


def test_mlflow_has_a_nested_run_for_each_trial_with_its_hyperparameters():
    with mlflow(run_name="search") as tracker:
        tracker(trial())
    runs = mlflow_runs()
    run = runs["trial-3"]
    assert run.data.tags["mlflow.parentRunId"] == runs["search"].info.run_id
    assert run.data.params["learning_rate"] == "0.5"
    assert (run.data.tags["status"], run.info.status) == ("complete", "FINISHED")
    assert sorted(mlflow_points(run)) == [("score", 2, 1.0), *MEANS]


def test_sweep_takes_trackers_as_callbacks(tmp_path):
    with tensorboard(tmp_path) as tracker:
        result = sweep(
            parabola(),
            optlab.sgd,
            {"learning_rate": LogUniform(0.1, 0.2)},
            trials=2,
            steps=2,
            callbacks=[tracker],
        )
    for each in result.trials:
        points = tensorboard_points(tmp_path / f"trial-{each.number:04d}")
        assert ("validation/loss", 2, np.float32(each.loss)) in points


# The parts


def test_points_that_are_added_in_any_order_come_back_in_order():
    points = Points("d")
    for step in (3, 1, 2, 3):
        points.add("a", step, 0.1 * step)
    points.add("b", 2, np.nan)
    assert points.rows(2).keys() == {2, 3}
    assert points.has("b", 2, np.nan)
    assert not points.has("a", 2, 0.3)
    points.forget(2)
    assert points.rows() == {1: {"a": 0.1}}


@pytest.mark.parametrize(
    ("module", "extra", "make"),
    [
        ("tensorboardX.event_file_writer", "tensorboard", tensorboard),
        ("wandb", "wandb", lambda folder: wandb()),
        ("mlflow", "mlflow", lambda folder: mlflow()),
    ],
)
def test_a_library_that_is_not_installed_is_named_with_its_extra(
    monkeypatch, tmp_path, module, extra, make
):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=f'{module} is .*pip install "optlab.{extra}."'):
        make(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
