"""The public interface as a type checker sees it.

`basedpyright` checks every `assert_type` here, and pytest runs the file, so that what is shown to
the checker is also what happens. It does not import the implementation: everything comes from the
public modules, as in a user's program.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import optax

import optlab
from optlab import dialects, groups, schedules

Transformation = optax.GradientTransformationExtraArgs


def test_optimizers_are_transformations_with_extra_arguments():
    rate = jnp.asarray(0.1)
    assert_type(optlab.sgd(0.1, momentum=0.9, nesterov=True), Transformation)
    assert_type(optlab.sgd(rate, momentum=None), Transformation)
    assert_type(optlab.adagrad(schedules.linear(0.1, 0.0, 100)), Transformation)
    assert_type(
        optlab.rmsprop(0.1, decay=optax.constant_schedule(0.9), centered=True), Transformation
    )
    assert_type(optlab.adam(0.1, b1=rate, mu_dtype=jnp.bfloat16), Transformation)
    assert_type(optlab.adamw(0.1, weight_decay=0.1, mask={"w": True, "b": False}), Transformation)
    assert_type(optlab.adamw(0.1, mask=lambda params: params is not None), Transformation)


def test_directions_and_transformations_chain_with_those_of_optax():
    chain = optax.chain(
        optlab.clip_by_value(1.0),
        optlab.clip_by_global_norm(1.0),
        optlab.scale_by_momentum(0.9),
        optlab.scale_by_adagrad(),
        optlab.scale_by_rmsprop(decay=0.9),
        optlab.scale_by_adam(),
        optlab.add_decayed_weights(0.1, mask={"w": True}),
        optlab.scale_by_learning_rate(0.1),
        optlab.reduce_on_plateau(0.5, patience=3),
        optlab.params_ema(0.99, warmup_power=2 / 3),
    )
    params = {"w": jnp.ones(3)}
    updates, state = chain.update(params, chain.init(params), params)
    assert_type(optlab.averaged_params(state), Any)
    assert_type(optlab.global_norm(updates), jax.Array)


def test_averages_become_snapshots_and_trees():
    chain = optax.chain(optlab.params_power_ema(0.1, gamma=None))
    params = jnp.ones(3)
    _, state = chain.update(params, chain.init(params), params)
    snapshot = optlab.power_ema_snapshot(state)
    assert_type(snapshot, optlab.PowerEmaSnapshot)
    assert_type(optlab.reconstruct([snapshot], 0.1, step=1), Any)
    assert_type(optlab.reconstruction_error([snapshot], 0.1), float)
    assert_type(optlab.params_lawa(every=2), optax.GradientTransformationExtraArgs)


def test_groups_are_transformations():
    params = {"body": jnp.ones(3), "head": jnp.ones(3)}
    tx = groups.partition(
        params,
        [
            ("head", groups.group(optlab.adamw(0.1), lr_mult=0.5, weight_decay=0.1)),
            (groups.slices("body", 0, 2), groups.frozen()),
            (lambda path, p: path == "body", optlab.adamw(0.1)),
            groups.no_decay(),
            groups.layerwise_decay(0.5, "mae", layers=["body"]),
            (..., groups.group()),
        ],
        optimizer=optlab.adamw(0.1),
        around=lambda tx: optax.chain(optlab.clip_by_global_norm(1.0), tx),
    )
    assert_type(tx, Transformation)
    state = tx.init(params)
    assert_type(groups.carry_over(state, tx, params), Any)
    assert_type(groups.freeze(optax.adam(0.1), params, "body"), Transformation)


def test_hyperparameters_are_arrays_by_name():
    state = optlab.adam(0.1).init(jnp.ones(3))
    assert_type(optlab.hyperparams(state), dict[str, jax.Array])
    assert_type(optlab.replace_hyperparams(state, learning_rate=0.2), Any)


def test_wrappers_take_any_transformation():
    tx = optax.adam(0.1)
    assert_type(optlab.skip_nonfinite(tx, max_consecutive=3), Transformation)
    assert_type(optlab.accumulate(tx, 4), Transformation)
    assert_type(optlab.master_params(tx), Transformation)
    assert_type(optlab.kahan_summation(tx), Transformation)
    assert_type(optlab.stochastic_rounding(tx, jax.random.key(0)), Transformation)
    scaled = optlab.dynamic_loss_scale(tx)
    assert_type(scaled, Transformation)
    state = scaled.init(jnp.ones(3, jnp.float16))
    assert_type(optlab.loss_scale(state), jax.Array)
    assert_type(optlab.skip_counts(state).skipped, jax.Array)


def test_schedules_map_steps_to_arrays():
    curve = schedules.warmup(schedules.cosine(0.1, 100, 0.01), 10)
    assert_type(curve, schedules.Curve)
    assert_type(curve(3), jax.Array)
    assert_type(schedules.constant(0.1), schedules.Curve)
    assert_type(schedules.step_decay(0.1, 0.5, 10), schedules.Curve)
    assert_type(schedules.multistep(0.1, 0.5, [10, 20]), schedules.Curve)
    assert_type(schedules.exponential(0.1, 0.01), schedules.Curve)
    assert_type(schedules.polynomial(0.1, 0.0, 2.0, 10), schedules.Curve)
    assert_type(schedules.inverse_sqrt(0.1, 10), schedules.Curve)
    assert_type(schedules.warmup_cosine(0.1, 10, 100), schedules.Curve)
    assert_type(schedules.wsd(0.1, 10, 50, 40), schedules.Curve)
    assert_type(schedules.triangular(0.1, 0.2, 10), schedules.Curve)
    assert_type(schedules.cosine_restarts(0.1, 10), schedules.Curve)
    joined = schedules.join([curve, optax.constant_schedule(0.1)], [100])
    assert_type(schedules.clamp(schedules.scale(joined, 2.0), max_value=0.1), schedules.Curve)
    cycle = schedules.one_cycle(0.1, 100)
    assert_type(cycle, schedules.OneCycle)
    assert_type(cycle.learning_rate, schedules.Curve)
    assert_type(schedules.epochs_to_steps(2, 100, 10), int)


def test_schedules_of_other_frameworks_are_schedules():
    torch = dialects.pytorch.lr_scheduler
    step = torch.StepLR(0.1, step_size=30)
    assert_type(step, schedules.Curve)
    assert_type(torch.ChainedScheduler([step, torch.LinearLR(0.1)]), schedules.Curve)
    assert_type(torch.LambdaLR(0.1, lambda t: 0.5**t), schedules.Curve)
    cycle = torch.OneCycleLR(0.1, total_steps=100)
    assert_type(cycle.learning_rate, schedules.Curve)
    tx = dialects.pytorch.sgd(cycle.learning_rate, momentum=cycle.momentum)
    assert_type(tx, Transformation)
    warm = dialects.huggingface.get_linear_schedule_with_warmup(0.1, 10, 100)
    assert_type(warm, schedules.Curve)


def test_dialects_make_transformations_and_carry_states():
    assert_type(dialects.pytorch.adamw(lr=0.1, betas=(0.9, 0.95)), Transformation)
    assert_type(dialects.keras.adam(0.1, beta_1=0.9), Transformation)
    assert_type(dialects.tensorflow1.rmsprop(0.1), Transformation)
    assert_type(dialects.timm.nmuon(0.02, adjust_lr_fn="original"), Transformation)
    tx = dialects.optax.adam(0.1)
    assert_type(tx, Transformation)
    params = {"w": jnp.ones(3)}
    state = dialects.optax.from_state(tx, params, optax.adam(0.1).init(params))
    assert_type(dialects.optax.to_state(state, optax.adam(0.1), params), Any)
    assert_type(dialects.table("adamw"), str)


def test_the_lab_returns_results_with_known_fields(tmp_path: Path):
    from optlab import lab

    task = lab.tasks.valley()
    assert_type(task, lab.Task)
    space: Mapping[str, lab.Range] = {"learning_rate": lab.LogUniform(1e-3, 1e-2)}
    sweep = lab.sweep(task, optlab.adam, space, trials=2, steps=2)
    assert_type(sweep, lab.Sweep)
    assert_type(sweep.trials, Sequence[lab.Trial])
    assert_type(sweep.best.score, float)
    run = lab.train(task, lab.monitor(optlab.adam(0.1)), steps=2, key=jax.random.key(0))
    assert_type(run, lab.Run)
    assert_type(run.history, lab.History)
    assert_type(lab.diagnose(run.history), lab.Diagnosis)
    assert_type(lab.EarlyStopping(patience=2).update(1.0).reason, str | None)
    test = lab.lr_range_test(task, optlab.adam, steps=10, seeds=1)
    assert_type(test.suggested_max, float | None)
    comparison = lab.compare(task, {"adam": optlab.adam}, rates=[0.1], seeds=1, steps=2)
    assert_type(comparison, lab.Comparison)
    assert_type(comparison.rows()[0].rate, float | None)


def test_plots_return_axes_and_figures():
    from matplotlib.axes import Axes

    from optlab import plots

    assert_type(plots.plot_schedules({"linear": schedules.linear(0.1, 0.0, 10)}, steps=10), Axes)
