"""Put deliberate faults into the library, and see whether the fast tests notice them.

    python tests/mutations.py [--limit SECONDS] [NAME ...]

For each fault (all of them, or those named) the script copies the repository to a temporary folder,
changes one place there, and runs the fast tests until the first one fails: those that are likely to
notice first, then all tests of the arithmetic. It prints which test noticed, and after how long. At
the end it runs the tests that noticed something on a copy without a fault, where they must pass.
The exit status is 1 if a fault was not noticed, or a test fails without any.

Run it after the tests were made faster or fewer: what it prints shows that they still test. A fault
that no test notices wants a test, and a new kind of error a fault in this table.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PYTEST = (sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider")
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__")
PASSED, FAILED, NONE_COLLECTED = 0, 1, 5
"""Exit statuses of pytest. With any other one the fault breaks more than a result."""

ALL = (
    "tests/optimizers/test_facts.py tests/rules tests/transforms",
    "tests/testing tests/wrappers tests/optimizers tests/test_errors.py",
)
"""The fast tests of rules, transformations and wrappers, for faults that the likely ones miss."""


class Fault(NamedTuple):
    """A deliberate fault.

    Attributes:
        name: what is wrong.
        file: which file is changed, in the folder of the package.
        original: the text that is replaced, which occurs once in the file.
        faulty: the text in its place.
        likely: arguments of pytest that select tests which are likely to notice.
    """

    name: str
    file: str
    original: str
    faulty: str
    likely: str


def row(name: str, check: str = "") -> str:
    """Return arguments of pytest that select the checks of one row, or one of its checks."""
    test = "tests/testing/test_checks.py"
    return f"'{test}::test_row[{name}-{check}]'" if check else f"{test} -k '[{name}-'"


GROUPS = "tests/groups"

FAULTS = (
    # The formulas of the optimizers
    Fault(
        "adam_decays_swapped",
        "optimizers/_adam.py",
        "mu = average(h.b1, mu, bounded)\n        nu = average(h.b2,",
        "mu = average(h.b2, mu, bounded)\n        nu = average(h.b1,",
        row("adam"),
    ),
    Fault(
        "adam_eps_inside_the_root",
        "optimizers/_adam.py",
        "mu_hat / (root(nu_hat + h.eps_root) + h.eps)",
        "mu_hat / (root(nu_hat + h.eps_root + h.eps))",
        row("adam"),
    ),
    Fault(
        "adam_eps_root_outside_the_root",
        "optimizers/_adam.py",
        "mu_hat / (root(nu_hat + h.eps_root) + h.eps)",
        "mu_hat / (root(nu_hat) + h.eps_root + h.eps)",
        row("adam"),
    ),
    Fault(
        "adam_eps_a_constant_of_python",
        "optimizers/_adam.py",
        "mu_hat / (root(nu_hat + h.eps_root) + h.eps)",
        "mu_hat / (root(nu_hat + h.eps_root) + (h.eps if callable(eps) else eps))",
        row("adam"),
    ),
    Fault(
        "amsgrad_without_the_maximum",
        "optimizers/_adam.py",
        "            nu_hat = jnp.maximum(nu_max[0], nu_hat)\n",
        "",
        row("adam"),
    ),
    Fault(
        "nadam_corrects_for_this_update",
        "optimizers/_adam.py",
        "next_bias = h.b1.complement + h.b1.value / h.b1.correction",
        "next_bias = 1 / h.b1.correction",
        row("adam"),
    ),
    Fault(
        "adamw_decay_goes_through_the_momentum",
        "optimizers/_adamw.py",
        "        adam_rule(who, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov, "
        "amsgrad=amsgrad),\n        weight_decay_rule(who, weight_decay, mask),\n",
        "        weight_decay_rule(who, weight_decay, mask),\n        adam_rule("
        "who, b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov, amsgrad=amsgrad),\n",
        row("adamw"),
    ),
    Fault(
        "nesterov_looks_along_the_old_velocity",
        "optimizers/_momentum.py",
        "(onward(v) if nesterov else v)",
        "(onward(slots.velocity) if nesterov else v)",
        row("momentum"),
    ),
    Fault(
        "momentum_without_dampening",
        "optimizers/_momentum.py",
        "        g = share * g\n",
        "",
        row("momentum"),
    ),
    Fault(
        "adagrad_forms_of_eps_swapped",
        "optimizers/_adagrad.py",
        "if eps_in_sqrt else root",
        "if not eps_in_sqrt else root",
        row("adagrad"),
    ),
    Fault(
        "adagrad_compensates_with_the_wrong_sign",
        "optimizers/_adagrad.py",
        "lost = [square - (s - old)]",
        "lost = [(s - old) - square]",
        "tests/optimizers/test_facts.py",
    ),
    Fault(
        "adagrad_eps_a_constant_of_python",
        "optimizers/_adagrad.py",
        "root(s) + h.eps",
        "root(s) + (h.eps if callable(eps) else eps)",
        row("adagrad"),
    ),
    Fault(
        "rmsprop_takes_the_root_of_a_negative",
        "optimizers/_rmsprop.py",
        "jnp.maximum(variance - jnp.square(weight * m[0]), 0)",
        "variance - jnp.square(weight * m[0])",
        "tests/optimizers/test_facts.py",
    ),
    Fault(
        "rmsprop_mean_of_unbounded_gradients",
        "optimizers/_rmsprop.py",
        "average(h.decay, m[0], bounded(g))",
        "average(h.decay, m[0], g)",
        row("rmsprop"),
    ),
    Fault(
        "rmsprop_slots_lose_the_sharding",
        "optimizers/_rmsprop.py",
        '"mean_square": slot(start)}',
        '"mean_square": lambda p: jnp.full('
        "p.shape, start, jnp.promote_types(p.dtype, jnp.float32))}",
        "tests/rules/test_sharding.py",
    ),
    Fault(
        "lion_decays_swapped",
        "optimizers/_lion.py",
        "average(h.b1, slots.mu, g)",
        "average(h.b2, slots.mu, g)",
        row("lion"),
    ),
    Fault(
        "lion_needs_silent_promotion",
        "optimizers/_lion.py",
        "+ (g - g)",
        "+ jnp.int32(0) * g",
        "tests/rules/test_modes.py",
    ),
    Fault(
        "lars_decay_is_not_in_the_ratio",
        "optimizers/_lars.py",
        "if decays and not norm_of_sum:",
        "if False:",
        row("lars"),
    ),
    Fault(
        "lars_adapts_biases",
        "optimizers/_lars.py",
        'if "trust_ratio" not in masks:',
        "if False:",
        row("lars"),
    ),
    Fault(
        "lamb_decays_behind_the_ratio",
        "optimizers/_lamb.py",
        "return times_ratio(u, norm_of(p), norm_of(u), largest=largest), ()",
        "return times_ratio(u, norm_of(p), norm_of(u - p), largest=largest), ()",
        row("lamb"),
    ),
    Fault(
        "a_ratio_of_norms_overflows",
        "rules/_norms.py",
        "return u * half * half",
        "return u * (half * half)",
        "tests/optimizers/test_facts.py",
    ),
    Fault(
        "adafactor_divides_by_the_wrong_level",
        "optimizers/_adafactor.py",
        "level = _mean(row, rows, height, keepdims=True)",
        "level = _mean(row, rows, width, keepdims=True)",
        row("adafactor"),
    ),
    Fault(
        "adafactors_relative_step_does_not_fall",
        "optimizers/_adafactor.py",
        "1e-2, 1 / jnp.sqrt(t))",
        "1e-2, 1.0)",
        "tests/optimizers/test_facts.py",
    ),
    Fault(
        "soap_second_moment_keeps_its_order",
        "optimizers/_soap.py",
        'nu = jnp.take_along_axis(nu, index, axis=-2 if side == "left" else -1)',
        "pass",
        "tests/optimizers/test_second_moments.py",
    ),
    Fault(
        "soap_momentum_stays_in_the_old_basis",
        "optimizers/_soap.py",
        "_into(_out_of(mu, bases), new), nu",
        "mu, nu",
        row("soap"),
    ),
    Fault(
        "soap_bias_counts_the_idle_update",
        "optimizers/_soap.py",
        "decay(b2, bias_corrected=correct_bias, idle=idle)",
        "decay(b2, bias_corrected=correct_bias)",
        row("soap"),
    ),
    Fault(
        "shampoo_exponent_of_one_side",
        "optimizers/_shampoo.py",
        "0.5 / max(len(of_stack), 1)",
        "0.5",
        row("shampoo"),
    ),
    Fault(
        "shampoo_decomposes_in_every_update",
        "optimizers/_shampoo.py",
        "after, are_finite = only_where_due(is_due, renew, keep)",
        "after, are_finite = renew()",
        "tests/optimizers/test_second_moments.py",
    ),
    Fault(
        "a_direction_loses_its_own_default",
        "rules/_public.py",
        "parameter.replace(default=defaults.get(parameter.name, parameter.default))",
        "parameter",
        "tests/rules/test_precision.py",
    ),
    Fault(
        "ascent",
        "rules/_steps.py",
        "-h.learning_rate if descends else h.learning_rate",
        "h.learning_rate if descends else -h.learning_rate",
        row("sgd"),
    ),
    # The formulas of the dialects
    Fault(
        "pytorch_muon_adds_eps_to_the_norm",
        "dialects/pytorch/_rules.py",
        "divisor=jnp.maximum",
        "divisor=jnp.add",
        "tests/dialects/test_muon_elsewhere.py -k 'pytorch and double'",
    ),
    Fault(
        "nmuon_does_not_correct_the_gradient_of_others",
        "dialects/timm.py",
        "h.b1.complement * h.b1.correction",
        "h.b1.complement",
        "tests/dialects/test_muon_elsewhere.py -k 'timm and double'",
    ),
    Fault(
        "optax_muon_corrects_as_all_others",
        "dialects/optax/contrib.py",
        "beta.value / next_bias * mu",
        "beta.value * beta.correction * mu",
        "tests/dialects/test_muon_elsewhere.py -k 'optax and double'",
    ),
    # Numbers at the ends of their range
    Fault(
        "huge_gradients_not_bounded",
        "rules/_arithmetic.py",
        "return jax.lax.clamp(-bound, g, bound)",
        "return g",
        row("adam"),
    ),
    Fault(
        "huge_squares_not_bounded",
        "rules/_arithmetic.py",
        "return jnp.minimum(g * g, _bound(g.dtype) ** 2)",
        "return g * g",
        row("adam"),
    ),
    Fault(
        "an_infinity_is_hidden",
        "rules/_arithmetic.py",
        "return bounded(g) + (g - g)",
        "return bounded(g)",
        row("adam"),
    ),
    Fault(
        "a_nan_is_hidden",
        "rules/_lift.py",
        "update, new_slots = take(gradient), []",
        "update, new_slots = jnp.where(jnp.isnan(take(gradient)), 0, take(gradient)), []",
        row("sgd"),
    ),
    Fault(
        "a_sum_of_squares_overflows",
        "rules/_arithmetic.py",
        "return s + jnp.minimum(square, largest - s)",
        "return s + square",
        "tests/optimizers/test_extremes.py",
    ),
    Fault(
        "a_velocity_overflows",
        "rules/_arithmetic.py",
        "return jax.lax.clamp(-largest, x, largest) + (g - g)",
        "return x",
        "tests/optimizers/test_extremes.py -k velocity",
    ),
    Fault(
        "a_narrow_slot_overflows",
        "rules/_arithmetic.py",
        "return jnp.where(jnp.isinf(x), x, jnp.clip(x, -largest, largest)).astype(dtype)",
        "return x.astype(dtype)",
        "tests/rules/test_precision.py",
    ),
    Fault(
        "an_average_uses_the_rounded_decay",
        "rules/_arithmetic.py",
        "return heavier + beta.weight * (new - old)",
        "return beta.value * old + (1 - beta.value) * new",
        "tests/rules/test_precision.py",
    ),
    Fault(
        "the_root_has_an_infinite_slope",
        "_tree.py",
        "slope = jnp.where(positive, 0.5 / jnp.where(positive, y, 1), 0)",
        "slope = jnp.where(positive, 0.5 / y, 0.5 / y)",
        row("adam", "differentiates_at_zero_gradients"),
    ),
    # Hyperparameters
    Fault(
        "a_bias_correction_of_one_update_more",
        "rules/_hyperparams.py",
        "_correction(high, value, jnp.exp(before[0]))",
        "_correction(high + log[0], value, jnp.exp(before[0]))",
        row("adam"),
    ),
    Fault(
        "a_bias_correction_of_the_present_decay",
        "rules/_hyperparams.py",
        "_correction(high, value, jnp.exp(before[0]))",
        "_correction((count + 1).astype(value.dtype) * log[0], value, jnp.exp(before[0]))",
        row("adam"),
    ),
    Fault(
        "a_bias_correction_drifts",
        "rules/_hyperparams.py",
        "low = total[1] + term[1] + error",
        "low = 0 * error",
        "tests/rules/test_precision.py",
    ),
    Fault(
        "a_schedule_is_one_update_ahead",
        "rules/_hyperparams.py",
        "self._scheduled(kind.name, count + joined)",
        "self._scheduled(kind.name, count + joined + 1)",
        row("sgd"),
    ),
    Fault(
        "a_replaced_value_is_ignored",
        "rules/_hyperparams.py",
        "value = jnp.where(replaced, old_value, argument)",
        "value = argument",
        row("sgd"),
    ),
    Fault(
        "a_changed_argument_is_ignored",
        "rules/_hyperparams.py",
        "value = jnp.where(replaced, old_value, argument)",
        "value = old_value",
        row("sgd"),
    ),
    Fault(
        "a_replaced_decay_keeps_its_complement",
        "rules/_hyperparams.py",
        "unreplaced = value == argument",
        "unreplaced = value == value",
        row("adam", "a_value_replaced_in_the_state_takes_effect"),
    ),
    Fault(
        "a_replaced_value_may_be_anything",
        "_inspect.py",
        "_checks.check_number(who, key, value, entry.domain, dtype=entry.value.dtype)",
        "_checks.check_number(who, key, value, _checks.ANY, dtype=entry.value.dtype)",
        row("sgd"),
    ),
    # The lift
    Fault(
        "the_count_wraps_around",
        "rules/_lift.py",
        "jnp.asarray(optax.safe_increment(count))",
        "jnp.asarray(count + 1)",
        row("sgd", "the_counter_saturates"),
    ),
    Fault(
        "half_precision_is_computed_in_half_precision",
        "rules/_lift.py",
        "return compute_dtype(gradient.dtype, "
        "gradient.dtype if parameter is None else parameter.dtype)",
        "return jnp.finfo(gradient.dtype).dtype",
        row("adam"),
    ),
    Fault(
        "rules_in_a_row_round_in_between",
        "rules/_lift.py",
        "rule.leaf(update, taken, own, p, *facts)",
        "rule.leaf(round_to(update, gradient.dtype), taken, own, p, *facts)",
        row("adamw", "low_precision_keeps_types_and_computes_in_float32"),
    ),
    Fault(
        "slots_in_the_parameters_narrow_type",
        "rules/_rule.py",
        "dtype = param.dtype if is_complex else compute_dtype(param.dtype)",
        "dtype = param.dtype",
        row("adam"),
    ),
    Fault(
        "slots_lose_the_sharding",
        "rules/_rule.py",
        "return jnp.full_like(param, self.value, dtype=dtype)",
        "return jnp.full(param.shape, self.value, dtype)",
        row("adam", "sharded_equals_single_device"),
    ),
    Fault(
        "new_slots_go_where_the_gradient_is",
        "rules/_lift.py",
        "leaves[index] = slot if is_whole else placed_like(slot, leaves[index])",
        "leaves[index] = slot",
        "tests/rules/test_sharding.py -k unlike_each_other",
    ),
    Fault(
        "a_divided_state_stays_whole",
        "sharding/_specs.py",
        "            entries[place] = axis\n",
        "            pass\n",
        "tests/sharding/test_state.py -k divided_once",
    ),
    Fault(
        "factors_lie_unlike_their_parameter",
        "sharding/_specs.py",
        "        return list(ways[0])\n",
        "        return [None] * len(shape)\n",
        "tests/sharding/test_state.py -k factors",
    ),
    Fault(
        "new_parameters_stay_divided",
        "sharding/_step.py",
        "self._placed(optax.apply_updates(own, updates), self.params_sharding)",
        "optax.apply_updates(own, updates)",
        "tests/sharding/test_step.py",
    ),
    Fault(
        "updates_not_cast_back",
        "rules/_lift.py",
        "return update if out_dtype is None else update.astype(out_dtype), new_slots",
        "return update, new_slots",
        row("sgd"),
    ),
    Fault(
        "updates_of_float32_parameters_in_the_gradients_narrow_type",
        "_tree.py",
        "return other if alike and jnp.finfo(other).bits > jnp.finfo(own).bits else own",
        "return own",
        row("sgd"),
    ),
    Fault(
        "the_mask_is_ignored",
        "rules/_lift.py",
        "touched = leaves.mask(rule.mask, params)",
        "touched = leaves.mask(None, params)",
        "tests/rules/test_trees.py",
    ),
    Fault(
        "slots_reset_where_the_gradient_is_none",
        "rules/_lift.py",
        "slots = {name: structure.unflatten(leaves) for name, leaves in self._slots.items()}",
        "slots = {name: structure.unflatten([x if i in self._leaves.present else jax.tree.map("
        "jnp.zeros_like, x) for i, x in enumerate(leaves)]) "
        "for name, leaves in self._slots.items()}",
        row("adam", "a_none_gradient_leaves_its_slots_alone"),
    ),
    Fault(
        "imaginary_parts_dropped",
        "rules/_lift.py",
        "jax.tree.map(complex_of, run(jnp.real), run(jnp.imag))",
        "jax.tree.map(lambda x: complex_of(x, 0 * x), run(jnp.real))",
        row("sgd"),
    ),
    Fault(
        "a_state_of_other_options_is_taken",
        "rules/_lift.py",
        "if _contents(type(own)) != _contents(kind):",
        "if False:",
        "tests/test_errors.py",
    ),
    Fault(
        "every_leaf_is_traced_anew",
        "rules/_lift.py",
        "run_leaf = outlined if traced else run",
        "run_leaf = run",
        "tests/rules/test_compiled.py",
    ),
    # Transformations
    Fault(
        "the_clip_factor_overflows",
        "rules/_norms.py",
        "return jnp.where(clips, scale, 1.0), factor",
        "return jnp.ones_like(scale), jnp.where(clips, scale, 1.0) * factor",
        row("clip_by_global_norm"),
    ),
    Fault(
        "the_norm_is_that_of_one_leaf",
        "rules/_norms.py",
        "clip_factors(updates, h[0])",
        "clip_factors(updates[:1], h[0])",
        row("clip_by_global_norm"),
    ),
    Fault(
        "an_infinite_norm_clips",
        "rules/_norms.py",
        " & jnp.isfinite(norm)",
        "",
        "tests/rules/test_precision.py",
    ),
    Fault(
        "the_average_is_of_the_parameters_before_the_update",
        "rules/_lift.py",
        "p = round_to(p + round_to(update, out_dtype or gradient.dtype), parameter.dtype)",
        "p = round_to(p, parameter.dtype)",
        row("params_ema"),
    ),
    Fault(
        "the_average_is_of_unrounded_parameters",
        "rules/_lift.py",
        "p = round_to(p + round_to(update, out_dtype or gradient.dtype), parameter.dtype)",
        "p = p + update",
        "tests/rules/test_precision.py",
    ),
    Fault(
        "the_average_shares_the_parameters_buffers",
        "transforms/_averaging.py",
        "return jnp.array(param, dtype, copy=True)",
        "return jnp.asarray(param, dtype)",
        row("params_ema", "donation_is_safe"),
    ),
    Fault(
        "the_warm_up_of_an_average_is_one_update_ahead",
        "transforms/_averaging.py",
        "t.astype(float) ** -power",
        "(t + 1).astype(float) ** -power",
        row("params_ema"),
    ),
    Fault(
        "the_decay_of_an_average_a_constant_of_python",
        "transforms/_averaging.py",
        "return h.decay.complement",
        "return h.decay.complement if callable(decay) else jnp.asarray(1 - decay, h[0][0].dtype)",
        row("params_ema"),
    ),
    Fault(
        "the_plain_mean_counts_one_too_many",
        "transforms/_averaging.py",
        "share = 1 / jnp.maximum(number, 1)",
        "share = 1 / (number + 1)",
        row("params_average"),
    ),
    Fault(
        "the_latest_parameters_replace_one_another",
        "transforms/_averaging.py",
        "place=jnp.where(due, (place + 1) % k, place)",
        "place=place",
        row("params_lawa"),
    ),
    Fault(
        "the_share_of_a_power_average_is_a_difference",
        "transforms/_power_average.py",
        "-jnp.expm1((gamma + 1) * log)",
        "1 - jnp.exp((gamma + 1) * log)",
        "tests/transforms/test_averages.py -k digits",
    ),
    Fault(
        "an_average_of_nothing_is_returned",
        "transforms/_averaged_params.py",
        "(np.asarray(number) == 0).any()",
        "False",
        "tests/transforms/test_averages.py -k nothing",
    ),
    Fault(
        "profiles_grow_by_the_wrong_power",
        "transforms/_reconstruction.py",
        "np.where(s <= t, other, own)",
        "np.where(s <= t, own, other)",
        "tests/transforms/test_averages.py -k table",
    ),
    Fault(
        "the_schedule_goes_on_under_the_annealing",
        "schedules/_swa.py",
        "schedule(jnp.minimum(step, start_step))",
        "schedule(step)",
        "tests/schedules/test_schedules.py -k swa",
    ),
    Fault(
        "a_plateau_is_one_check_longer",
        "transforms/_plateau.py",
        "reduce = num_bad >= patience",
        "reduce = num_bad > patience",
        "tests/transforms/test_plateau.py",
    ),
    # Wrappers
    Fault(
        "the_mean_counts_bad_micro_batches",
        "wrappers/_accumulate.py",
        "scaled(total, every / number.astype(dtype) / average)",
        "scaled(total, 1 / average)",
        "tests/wrappers/test_accumulate.py -k full_size",
    ),
    Fault(
        "weights_are_ignored",
        "wrappers/_accumulate.py",
        "share = scaled(share, own)",
        "share = scaled(share, own / own)",
        "tests/wrappers/test_accumulate.py -k tokens",
    ),
    Fault(
        "a_window_is_one_micro_batch_longer",
        "wrappers/_accumulate.py",
        "ends = state.micro_step >= every - 1",
        "ends = state.micro_step >= every",
        row("accumulate"),
    ),
    Fault(
        "a_skipped_step_moves_the_state",
        "wrappers/_common.py",
        "return jnp.where(made, n, o) if isinstance(n, jax.Array) else n",
        "return n",
        "tests/wrappers/test_nonfinite.py",
    ),
    Fault(
        "only_gradients_are_judged",
        "wrappers/_common.py",
        "made = all_finite(others) & _all_finite_by_leaf(seen, new_updates, new, state)",
        "made = all_finite((others, seen))",
        "tests/wrappers/test_nonfinite.py",
    ),
    Fault(
        "no_update_is_positive_zero",
        "wrappers/_common.py",
        "np.asarray(-0.0 if jnp.issubdtype(dtype, jnp.inexact) else 0, dtype)",
        "np.asarray(0, dtype)",
        "tests/wrappers/test_nonfinite.py",
    ),
    Fault(
        "giving_up_is_forgotten",
        "wrappers/_skip_nonfinite.py",
        "gave_up |= consecutive >= max_consecutive",
        "gave_up = consecutive >= max_consecutive",
        "tests/wrappers/test_nonfinite.py",
    ),
    Fault(
        "the_loss_scale_is_not_cut",
        "wrappers/_loss_scale.py",
        "jnp.maximum(state.loss_scale / step, low)",
        "jnp.maximum(state.loss_scale, low)",
        "tests/wrappers/test_loss_scale.py",
    ),
    Fault(
        "gradients_are_unscaled_in_their_narrow_type",
        "wrappers/_loss_scale.py",
        "    g = g.astype(wide(g.dtype))\n",
        "",
        "tests/wrappers/test_loss_scale.py",
    ),
    Fault(
        "kahans_compensation_has_the_wrong_sign",
        "wrappers/_kahan_summation.py",
        "jnp.where(jnp.isfinite(landed), theta - landed, 0)",
        "jnp.where(jnp.isfinite(landed), landed - theta, 0)",
        "tests/wrappers/test_half_precision.py",
    ),
    Fault(
        "the_master_copy_is_rounded",
        "wrappers/_master_params.py",
        "store=lambda moved, landed, dtype: moved",
        "store=lambda moved, landed, dtype: landed",
        "tests/wrappers/test_half_precision.py",
    ),
    Fault(
        "stochastic_rounding_leans_to_zero",
        "wrappers/_rounding.py",
        "(bits >> (32 - dropped))",
        "(bits >> (33 - dropped))",
        "tests/wrappers/test_half_precision.py",
    ),
    Fault(
        "every_update_rounds_by_the_same_bits",
        "wrappers/_stochastic_rounding.py",
        "        key = jax.random.fold_in(key, state.draw)\n",
        "",
        "tests/wrappers/test_half_precision.py -k independently",
    ),
    Fault(
        "the_state_shares_the_callers_key",
        "wrappers/_stochastic_rounding.py",
        "key=jnp.array(key_data, copy=True)",
        "key=jnp.asarray(key_data)",
        "tests/wrappers/test_half_precision.py -k donation",
    ),
    # Groups of parameters
    Fault(
        "frozen_parameters_get_plus_zero",
        "groups/_partition.py",
        "complex(-0.0, -0.0) if is_complex else -0.0",
        "complex(0.0, 0.0) if is_complex else 0.0",
        GROUPS,
    ),
    Fault(
        "waiting_groups_count_in_the_clip",
        "groups/_partition.py",
        "        gradients = _without_idle(plan, gradients, state)\n",
        "",
        GROUPS,
    ),
    Fault(
        "schedules_of_joined_groups_begin_anew",
        "rules/_hyperparams.py",
        "self._scheduled(kind.name, count + joined)",
        "self._scheduled(kind.name, count)",
        GROUPS,
    ),
    Fault(
        "joined_parameters_take_the_count_of_the_run",
        "groups/_carry_over.py",
        "*((name, age) for name in _COUNTERS)",
        "*((name, total) for name in _COUNTERS)",
        GROUPS,
    ),
    Fault(
        "products_of_decays_are_not_carried_over",
        "groups/_carry_over.py",
        "            if name in source:\n",
        "            if name in ():\n",
        GROUPS,
    ),
    Fault(
        "slices_have_the_first_multiplier",
        "groups/_optimizers.py",
        "jnp.asarray(factors, u.dtype)",
        "jnp.asarray(factors[:1] * len(factors), u.dtype)",
        GROUPS,
    ),
    Fault(
        "the_last_pattern_decides",
        "groups/_assignment.py",
        "choice[own & (choice < 0)] = number",
        "choice[own] = number",
        GROUPS,
    ),
    Fault(
        "the_last_layer_has_the_rate_of_the_head",
        "groups/_modifiers.py",
        'last = count + (2 if numbering == "electra" else 1)',
        'last = count + (1 if numbering == "electra" else 0)',
        GROUPS,
    ),
)


class Result(NamedTuple):
    """What came of one fault: the test that noticed it, or why none did, and the seconds."""

    fault: Fault
    noticed: bool
    by: str
    seconds: float


def copy_of_repository(folder: str) -> Path:
    """Copy the repository, without what belongs to version control and to tools."""
    return Path(shutil.copytree(ROOT, Path(folder) / "optlab", ignore=NOT_COPIED))


def insert(fault: Fault, copy: Path) -> None:
    """Change one place of a copy of the repository."""
    path = copy / "optlab" / fault.file
    path.write_text(path.read_text().replace(fault.original, fault.faulty))


def run_tests(copy: Path, arguments: list[str], limit: float) -> tuple[int, str]:
    """Run tests of a copy of the repository; return pytest's exit status, and its output."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"JAX_PLATFORMS": "cpu", "COLUMNS": "200"}
    process = subprocess.run(
        [*PYTEST, *arguments],
        cwd=copy,
        env=environment,
        timeout=limit,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return process.returncode, process.stdout


def try_fault(fault: Fault, limit: float) -> Result:
    """Run tests with a fault until one fails, or the time is over."""
    start = time.monotonic()

    def result(noticed: bool, by: str) -> Result:
        return Result(fault, noticed, by, time.monotonic() - start)

    with tempfile.TemporaryDirectory() as folder:
        copy = copy_of_repository(folder)
        insert(fault, copy)
        for selection in (fault.likely, *ALL):
            left = limit - (time.monotonic() - start)
            try:
                status, output = run_tests(copy, shlex.split(selection), left)
            except subprocess.TimeoutExpired:
                return result(False, f"no test failed in {limit:.0f} s")
            if status == FAILED:
                return result(True, re.findall(r"^FAILED (.*?)(?: - |$)", output, re.MULTILINE)[0])
            if status not in (PASSED, NONE_COLLECTED):
                return result(False, f"no test ran to its end:\n{output}")
    return result(False, "no test failed")


def failures_without_fault(tests: list[str], limit: float) -> str:
    """Return what pytest says of tests that fail without a fault; nothing if all pass."""
    with tempfile.TemporaryDirectory() as folder:
        status, output = run_tests(copy_of_repository(folder), tests, limit)
    return "" if status == PASSED else output


def main() -> int:
    """Try the faults, and print what noticed them."""
    names = {fault.name: fault for fault in FAULTS}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=600, help="seconds for each fault")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"among {', '.join(names)}")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(names)
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    width = max(map(len, arguments.names or names))
    results = []
    for name in arguments.names or names:
        result = try_fault(names[name], arguments.limit)
        mark = "noticed" if result.noticed else "MISSED "
        print(f"{name:<{width}}  {mark}  {result.seconds:4.0f} s  {result.by}", flush=True)
        results.append(result)
    missed = sum(not result.noticed for result in results)
    print(f"{len(results) - missed} of {len(results)} faults noticed")
    tests = sorted({result.by for result in results if result.noticed})
    failures = failures_without_fault(tests, arguments.limit) if tests else ""
    if failures:
        print(f"Without a fault some of these tests fail, too:\n{failures}")
    return 1 if missed or failures else 0


if __name__ == "__main__":
    sys.exit(main())
