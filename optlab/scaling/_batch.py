"""Hyperparameters for another batch size.

With κ = batch/base_batch, the rules say what becomes of the learning rate α:

    linear    α′ = κ·α
    sqrt      α′ = √κ·α
    sde       α′ = κ·α for SGD; for Adam and RMSProp α′ = √κ·α, β′ = 1 − κ(1 − β), ε′ = ε/√κ
    noise     α′ = α·((1 + B_noise/base_batch) / (1 + B_noise/batch))ᵖ, p = 1 for SGD, else ½

The rest is the same for all: a run sees the same examples, the decoupled weight decay λ forgets
over the same number of examples, 1/(α·λ) updates of a batch each, and so does an average of the
parameters with the decay a:

    n′ = n/κ updates        λ′ = λ·κ·α/α′        a′ = aᵏ, k = κ

References: Goyal et al., arXiv:1706.02677 (2017), linear; Krizhevsky, arXiv:1404.5997 (2014), sqrt;
Malladi et al., NeurIPS (2022), sde; McCandlish et al., arXiv:1812.06162 (2018), noise; Wang,
Aitchison, arXiv:2405.13698 (2024), weight decay; Busbridge et al., NeurIPS (2023), averages.
"""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Literal

from optlab import _checks
from optlab._tree import is_traced

_WHO = "scale_batch"

RULES = ("linear", "sqrt", "sde", "noise")
SGD = ("sgd", "scale_by_momentum")
ADAM = ("adam", "adamw", "nadam", "nadamw", "amsgrad", "rmsprop")

_RATES = ("learning_rate", "peak_value", "init_value", "end_value")
_DECAYS = ("b1", "b2", "decay")
_AVERAGES = ("ema_decay", "average_decay")
_KEPT = ("momentum", "nesterov", "dampening", "epochs")
_EPSILONS = {"eps": 0.5, "eps_root": 1.0}
"""The power of 1/κ that each takes; `eps_root` has the unit of squared gradients."""

KNOWN = (*_RATES, *_DECAYS, *_EPSILONS, "weight_decay", *_AVERAGES, *_KEPT, "batch_size")


def scale_batch(
    hyperparameters: Mapping[str, Any],
    base_batch: int,
    batch: int,
    rule: Literal["linear", "sqrt", "sde", "noise"] = "linear",
    *,
    optimizer: str | Callable[..., Any] | None = None,
    noise_scale: float | None = None,
    weight_decay: Literal["decoupled", "penalty"] = "decoupled",
) -> dict[str, Any]:
    """Return hyperparameters for another batch size, from those that are good for one.

    With κ = batch/base_batch, which may be below 1, each rule sets the learning rate, and rests on
    an assumption:

    - "linear": α′ = κ·α. κ steps of the small batch are one step of the large one, as long as the
      gradient changes little over them. It holds for SGD, with and without momentum, while the
      batch is well below the noise scale and the rate below the edge of stability. Early in
      training the gradient changes fast, so warm the rate up (Goyal et al.).
    - "sqrt": α′ = √κ·α, which keeps the variance of the updates (Krizhevsky). It is the usual
      choice for Adam, Lion and other rules that divide by the gradient's size, where that size is
      mostly noise: again, below the noise scale.
    - "sde": both sizes follow one stochastic differential equation, so that the whole path is
      alike, not only the rate (Malladi et al.). For SGD it is "linear". For Adam and RMSProp the
      rate grows by √κ, β′ = 1 − κ(1 − β) for each β, so that averages last for as many examples,
      and ε′ = ε/√κ. It assumes that noise dominates the gradient, and small steps: an average must
      last for several updates of the large batch. It breaks where κ ≥ 1/(1 − β), as then β′ ≤ 0,
      and is refused.
    - "noise": α′ = α·((1 + B/base_batch)/(1 + B/batch))ᵖ with the noise scale B that `noise_scale`
      measures. For SGD (p = 1) it is linear far below B, and beyond B the rate stays. It follows
      from a quadratic model of the loss whose best rate is taken at each batch (McCandlish et al.).
      For other rules p = ½, a choice of ours that agrees with "sqrt" far below B.

    All rules let the run see the same examples, so that numbers of updates are divided by κ; keep
    the time after which decoupled weight decay forgets, in examples; and that of an average of the
    parameters.

    All assume that the loss is a mean over the batch. With batch normalization the statistics
    change with the batch; take them over groups of the old size.

    Args:
        hyperparameters: name → number. The names, and what becomes of them:
            "learning_rate", and "peak_value", "init_value" and "end_value" of its schedule: as the
            rule says.
            "b1", "b2", "decay": β of Adam and of RMSProp; kept but by "sde", which must be given
            them even where they are the defaults.
            "eps", "eps_root": kept but by "sde" for Adam and RMSProp: ε/√κ, ε_root/κ.
            "weight_decay": λ·κ·α/α′, or kept; see the argument of that name.
            "ema_decay", "average_decay": a to the power κ.
            "steps" and names that end in "_steps", such as "warmup_steps": divided by κ and
            rounded; warm-up and length change together. Those of an accumulation are refused.
            "batch_size": must be `base_batch`, and becomes `batch`.
            "momentum", "nesterov", "dampening", "epochs": kept.
        base_batch: examples in a batch for which the hyperparameters are good, ≥ 1.
        batch: examples in a batch for which they are wanted, ≥ 1.
        rule: how the rate grows.
        optimizer: the optimizer's name or function, such as `optlab.adamw`. "sde" needs it and
            knows "sgd", "adam", "adamw", "nadam", "nadamw", "amsgrad" and "rmsprop"; "noise" needs
            it.
        noise_scale: B > 0 in examples, for "noise" alone.
        weight_decay: "decoupled" for a decay beside the loss, as AdamW's. "penalty" where λ is the
            factor of an L2 penalty within the loss, which stays the same function: λ is kept.

    Returns:
        The same names with the new values.

    Raises:
        ValueError: a batch is not a whole number ≥ 1; a name is unknown; a value is a schedule, or
            outside its range; the rule does not hold for the optimizer; with "sde" β is missing, or
            κ ≥ 1/(1 − β); a run would have less than one update.

    Example:
        AdamW's from 256 examples to 1,024:

        >>> import optlab
        >>> small = {"learning_rate": 6e-4, "b1": 0.9, "b2": 0.95, "eps": 1e-8, "weight_decay": 0.1,
        ...          "warmup_steps": 2000, "steps": 100_000}
        >>> large = scale_batch(small, 256, 1024, "sde", optimizer=optlab.adamw)
        >>> for name, value in large.items():
        ...     print(f"{name:13} {value:.4g}")
        learning_rate 0.0012
        b1            0.6
        b2            0.8
        eps           5e-09
        weight_decay  0.2
        warmup_steps  500
        steps         2.5e+04
    """
    base_batch = _checks.check_count(_WHO, "base_batch", base_batch, 1)
    batch = _checks.check_count(_WHO, "batch", batch, 1)
    _checks.check_choice(_WHO, "rule", rule, RULES)
    _checks.check_choice(_WHO, "weight_decay", weight_decay, ("decoupled", "penalty"))
    name = _optimizer_name(rule, optimizer)
    kappa = Fraction(batch, base_batch)
    factor = _rate_factor(rule, name, base_batch, batch, noise_scale)
    if not isinstance(hyperparameters, Mapping):
        got = type(hyperparameters).__name__
        _checks.fail(_WHO, "hyperparameters must be a mapping from names to numbers", got)
    to_sde = rule == "sde" and name in ADAM
    if to_sde and hyperparameters.get("momentum"):
        _checks.fail(
            _WHO,
            "the rule 'sde' must know all averages, and knows none of a momentum around RMSProp",
            f"momentum={hyperparameters['momentum']!r}",
            "leave momentum out, or use the rule 'sqrt'",
        )

    def scaled(key: str, value: Any) -> Any:
        if key in _KEPT:
            return value
        if key == "batch_size":
            return _new_batch_size(value, base_batch, batch)
        if _counts_updates(key):
            return _fewer_updates(key, value, kappa, base_batch, batch)
        number = _number(key, value, _checks.DECAY if key in _DECAYS else _checks.NONNEGATIVE)
        if key in _RATES:
            return number * factor
        if key in _DECAYS:
            return _shorter_decay(key, number, kappa) if to_sde else number
        if key in _EPSILONS:
            return number / float(kappa) ** _EPSILONS[key] if to_sde else number
        if key in _AVERAGES:
            return _number(key, value, _checks.UNIT) ** float(kappa)
        return number if weight_decay == "penalty" else number * float(kappa) / factor

    for key in hyperparameters:
        if key not in KNOWN and not (isinstance(key, str) and _counts_updates(key)):
            _checks.fail(
                _WHO,
                f"the names must be among {', '.join(KNOWN)}, steps and those that end in _steps, "
                "but for those of an accumulation",
                repr(key),
                "leave it out, and decide yourself what another batch makes of it",
            )
    if to_sde:
        _check_averages(name, hyperparameters)
    return {key: scaled(key, value) for key, value in hyperparameters.items()}


def _optimizer_name(rule: str, optimizer: Any) -> str | None:
    """Return the optimizer's name; require one that the rule holds for."""
    is_name = isinstance(optimizer, str)
    name = optimizer.lower() if is_name else getattr(optimizer, "__name__", None)
    if optimizer is not None and name is None:
        remedy = "pass a function, such as optlab.adamw, and not what it returns"
        got = type(optimizer).__name__
        _checks.fail(_WHO, "optimizer must be a name or a function with one", got, remedy)
    known = (*SGD, *ADAM)
    if rule == "sde" and name not in known:
        _checks.fail(
            _WHO,
            f"the rule 'sde' must be given one of the optimizers {', '.join(known)}",
            f"optimizer={name!r}",
            "pass optimizer=optlab.adam, say" if name is None else "use the rule 'sqrt'",
        )
    if rule == "noise" and name is None:
        remedy = "pass optimizer=optlab.sgd, say"
        _checks.fail(_WHO, "the rule 'noise' must be given the optimizer", "None", remedy)
    return name


def _check_averages(optimizer: str | None, hyperparameters: Mapping[str, Any]) -> None:
    """Require the β of all averages: one that is left out would keep its old value."""
    names = ("decay",) if optimizer == "rmsprop" else ("b1", "b2")
    missing = [name for name in names if name not in hyperparameters]
    if missing:
        _checks.fail(
            _WHO,
            f"the rule 'sde' must be given {' and '.join(names)}, since it changes them",
            f"none for {' and '.join(missing)}",
            "write the optimizer's defaults out",
        )


def _rate_factor(
    rule: str, optimizer: str | None, base_batch: int, batch: int, noise_scale: Any
) -> float:
    """Return α′/α."""
    if (rule == "noise") != (noise_scale is not None):
        required = "noise_scale must be given with the rule 'noise' and no other"
        _checks.fail(_WHO, required, f"rule={rule!r}, noise_scale={noise_scale}")
    kappa = batch / base_batch
    if rule == "noise":
        if hasattr(noise_scale, "noise_scale"):
            required = "noise_scale must be a number"
            got, remedy = f"a {type(noise_scale).__name__}", "pass its attribute noise_scale"
            _checks.fail(_WHO, required, got, remedy)
        noise = _number("noise_scale", noise_scale, _checks.POSITIVE)
        ratio = (1 + noise / base_batch) / (1 + noise / batch)
        return ratio if optimizer in SGD else math.sqrt(ratio)
    is_linear = rule == "linear" or (rule == "sde" and optimizer in SGD)
    return kappa if is_linear else math.sqrt(kappa)


def _counts_updates(key: str) -> bool:
    """Whether it is a number of updates; the micro-batches of an accumulation are none."""
    return (key == "steps" or key.endswith("_steps")) and "accum" not in key


def _number(key: str, value: Any, domain: _checks.Domain) -> float:
    """Return a number of a domain, known now."""
    if callable(value) or is_traced(value):
        _checks.fail(
            _WHO,
            f"{key} must be a number that is known now",
            "a traced array" if is_traced(value) else "a schedule",
            "scale the numbers that the schedule is made of",
        )
    return float(_checks.check_number(_WHO, key, value, domain))


def _new_batch_size(value: Any, base_batch: int, batch: int) -> int:
    if _checks.check_count(_WHO, "batch_size", value, 1) != base_batch:
        required = f"batch_size must be base_batch, {base_batch}"
        _checks.fail(_WHO, required, f"batch_size={value}")
    return batch


def _fewer_updates(key: str, value: Any, kappa: Fraction, base_batch: int, batch: int) -> int:
    """Return n/κ updates, rounded."""
    count = _checks.check_count(_WHO, key, value, 0)
    exact = count / kappa
    if key != "warmup_steps" and 0 < exact < 1:
        _checks.fail(
            _WHO,
            f"{key} must be at least one update of the large batch, {batch} examples",
            f"{key}={count} of {base_batch} examples",
            "take a smaller batch, or more examples",
        )
    return math.floor(exact + Fraction(1, 2))


def _shorter_decay(key: str, beta: float, kappa: Fraction) -> float:
    """Return 1 − κ(1 − β)."""
    # As the decimal number that was written: 1 − 0.9 in binary is a little less than a tenth.
    share = kappa * (1 - Fraction(repr(beta)))
    if kappa > 1 and share >= 1:
        limit = 1 / (1 - beta)
        _checks.fail(
            _WHO,
            f"with 'sde' batch/base_batch must be below 1/(1 − {key}) = {limit:.4g}, where the "
            f"average of {key} would last for less than one update",
            f"{float(kappa):.4g}",
            "take a smaller batch, or the rule 'sqrt'",
        )
    return float(1 - share)
