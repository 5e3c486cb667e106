"""The dialects side by side, as text. Defaults are read off the functions themselves."""

import inspect
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

from optlab import _checks, optimizers, transforms
from optlab.dialects import keras, optax, pytorch, tensorflow1, timm

OPTLAB, PYTORCH, KERAS, TENSORFLOW1, OPTAX = "optlab", "PyTorch", "Keras 3", "TensorFlow 1", "Optax"
TIMM = "timm"

MODULES: Mapping[str, ModuleType] = {
    OPTLAB: optimizers,
    PYTORCH: pytorch,
    KERAS: keras,
    TENSORFLOW1: tensorflow1,
    OPTAX: optax,
    TIMM: timm,
}


class Comparison(NamedTuple):
    """One rule in all dialects.

    Attributes:
        formula: what they have in common.
        columns: what they differ in.
        rows: dialect → a cell for each column; "=lr" stands for the default of the argument `lr`.
        notes: what to know beyond the table.
    """

    formula: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[str]]
    notes: str = ""


TABLES: Mapping[str, Comparison] = {
    "sgd": Comparison(
        "θ parameters, g gradient, η rate, μ momentum, τ dampening, λ weight decay",
        ("η", "μ", "velocity v", "step θ −=", "Nesterov's step", "weight decay"),
        {
            OPTLAB: (
                "=learning_rate",
                "=momentum",
                "μv + (1−τ)g",
                "ηv",
                "η(μv + (1−τ)g)",
                "chain it",
            ),
            PYTORCH: (
                "=lr",
                "=momentum",
                "g, then μv + (1−τ)g",
                "ηv",
                "η(μv + g), τ = 0",
                "g += λθ",
            ),
            KERAS: ("=learning_rate", "=momentum", "μv + ηg", "v", "μv + ηg", "θ −= ηλθ"),
            TENSORFLOW1: ("=learning_rate", "=momentum", "μv + g", "ηv", "η(μv + g)", "none"),
            OPTAX: ("=learning_rate", "=momentum", "μv + g", "ηv", "η(μv + g)", "chain it"),
        },
        "v in Nesterov's step is the new one. A rate inside the velocity (Keras) and one outside\n"
        "agree only while it is constant. PyTorch leaves the first gradient undampened.",
    ),
    "adagrad": Comparison(
        "s ← s + g²;  θ ← θ − ηg/d",
        ("η", "ε", "s starts at", "d", "rate of update t", "weight decay"),
        {
            OPTLAB: (
                "=learning_rate",
                "=eps",
                "=initial_accumulator_value",
                "√s + ε",
                "η",
                "chain it",
            ),
            PYTORCH: (
                "=lr",
                "=eps",
                "=initial_accumulator_value",
                "√s + ε",
                "η/(1 + (t−1)·lr_decay)",
                "g += λθ",
            ),
            KERAS: (
                "=learning_rate",
                "=epsilon",
                "=initial_accumulator_value",
                "√(s + ε)",
                "η",
                "θ −= ηλθ",
            ),
            TENSORFLOW1: (
                "=learning_rate",
                "none",
                "=initial_accumulator_value",
                "√s",
                "η",
                "none",
            ),
            OPTAX: (
                "=learning_rate",
                "=eps",
                "=initial_accumulator_value",
                "√(s + ε)",
                "η",
                "chain it",
            ),
        },
    ),
    "rmsprop": Comparison(
        "s ← ρs + (1−ρ)g²;  θ ← θ − ηg/d;  centered: m ← ρm + (1−ρ)g",
        ("η", "ρ", "ε", "s₀", "d", "centered d", "momentum, step", "weight decay"),
        {
            OPTLAB: (
                "=learning_rate",
                "=decay",
                "=eps",
                "0",
                "√s + ε",
                "√(s−m²) + ε",
                "v ← μv + g/d, ηv",
                "chain it",
            ),
            PYTORCH: (
                "=lr",
                "=alpha",
                "=eps",
                "0",
                "√s + ε",
                "√(s−m²) + ε",
                "v ← μv + g/d, ηv",
                "g += λθ",
            ),
            KERAS: (
                "=learning_rate",
                "=rho",
                "=epsilon",
                "0",
                "√(s + ε)",
                "√(s−m² + ε)",
                "v ← μv + ηg/d, v",
                "θ −= ηλθ",
            ),
            TENSORFLOW1: (
                "=learning_rate",
                "=decay",
                "=epsilon",
                "1",
                "√(s + ε)",
                "√(s−m² + ε)",
                "v ← μv + ηg/d, v",
                "none",
            ),
            OPTAX: (
                "=learning_rate",
                "=decay",
                "=eps",
                "0",
                "√(s + ε)",
                "√(s−m² + ε)",
                "v ← μv + ηg/d, v",
                "chain it",
            ),
        },
        "optlab and Optax take the other place of ε with eps_in_sqrt, another s₀ with\n"
        "initial_scale. PyTorch's centered d is NaN where rounding makes s − m² negative;\n"
        "here it is clamped at 0.",
    ),
    "adam": Comparison(
        "m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²;  m̂ = m/(1−β₁ᵗ);  v̂ = v/(1−β₂ᵗ);  θ ← θ − ηm̂/d",
        ("η", "β₁, β₂", "ε", "d", "AMSGrad's v̂", "βᵗ, where β changes", "weight decay"),
        {
            OPTLAB: (
                "=learning_rate",
                "=b1, =b2",
                "=eps",
                "√(v̂ + eps_root) + ε",
                "max v̂",
                "Πβ, exact",
                "chain it",
            ),
            PYTORCH: ("=lr", "=betas", "=eps", "√v̂ + ε", "(max v)/(1−β₂ᵗ)", "power", "g += λθ"),
            KERAS: (
                "=learning_rate",
                "=beta_1, =beta_2",
                "=epsilon",
                "√v̂ + ε/√(1−β₂ᵗ)",
                "(max v)/(1−β₂ᵗ)",
                "power",
                "θ −= ηλθ",
            ),
            TENSORFLOW1: (
                "=learning_rate",
                "=beta1, =beta2",
                "=epsilon",
                "√v̂ + ε/√(1−β₂ᵗ)",
                "none",
                "Πβ",
                "none",
            ),
            OPTAX: (
                "=learning_rate",
                "=b1, =b2",
                "=eps",
                "√(v̂ + eps_root) + ε",
                "max v̂ (optax.amsgrad)",
                "power",
                "chain it",
            ),
        },
        "ε/√(1−β₂ᵗ) is the “epsilon hat” of the paper's efficient form, 32 ε at the first update\n"
        "where β₂ is 0.999.",
    ),
    "adamw": Comparison(
        "θ ← θ − η(m̂/d + λθ), with Adam's m̂ and d",
        ("η", "β₁, β₂", "ε", "λ", "decay"),
        {
            OPTLAB: ("=learning_rate", "=b1, =b2", "=eps", "=weight_decay", "ηλθ"),
            PYTORCH: ("=lr", "=betas", "=eps", "=weight_decay", "ηλθ"),
            KERAS: ("=learning_rate", "=beta_1, =beta_2", "=epsilon", "=weight_decay", "ηλθ"),
            TENSORFLOW1: ("=learning_rate", "=beta1, =beta2", "=epsilon", "=weight_decay", "λθ"),
            OPTAX: ("=learning_rate", "=b1, =b2", "=eps", "=weight_decay", "ηλθ"),
        },
        "η is the rate in force, schedule included; the paper multiplies λ by the schedule's\n"
        "factor alone. TensorFlow's decay does not follow the rate at all.",
    ),
    "lars": Comparison(
        "v ← μv + ηr(g + λθ);  θ ← θ − v, norms of each array",
        ("η", "r", "ξ", "ε", "μ, λ", "rate", "not adapted"),
        {
            OPTLAB: (
                "=learning_rate",
                "ξ‖θ‖/(‖g‖ + λ‖θ‖ + ε)",
                "=trust_coefficient",
                "=eps",
                "=momentum, =weight_decay",
                "in v",
                "biases, norms",
            ),
            OPTAX: (
                "=learning_rate",
                "ξ‖θ‖/(‖g + λθ‖ + ε)",
                "=trust_coefficient",
                "=eps",
                "=momentum, =weight_decay",
                "in v",
                "none",
            ),
            TIMM: (
                "=lr",
                "ξ‖θ‖/(‖g‖ + λ‖θ‖ + ε)",
                "=trust_coeff",
                "=eps",
                "=momentum, =weight_decay",
                "outside v",
                "where λ = 0",
            ),
        },
        "What is not adapted has r = 1 and in optlab no decay. optlab takes the others' forms\n"
        "with norm_of_sum, rate_in_velocity and the two masks.",
    ),
    "lamb": Comparison(
        "r = m̂/(√v̂ + ε) + λθ;  θ ← θ − η‖θ‖/‖r‖·r, with Adam's m̂ and v̂, norms of each array",
        ("η", "β₁, β₂", "ε", "λ", "decay", "clip of ‖g‖", "not adapted"),
        {
            OPTLAB: (
                "=learning_rate",
                "=b1, =b2",
                "=eps",
                "=weight_decay",
                "in r",
                "=max_grad_norm",
                "biases, norms",
            ),
            KERAS: (
                "=learning_rate",
                "=beta_1, =beta_2",
                "=epsilon",
                "=weight_decay",
                "ηλθ, before",
                "=global_clipnorm",
                "none",
            ),
            OPTAX: (
                "=learning_rate",
                "=b1, =b2",
                "=eps",
                "=weight_decay",
                "in r",
                "none",
                "none",
            ),
            TIMM: (
                "=lr",
                "=betas",
                "=eps",
                "=weight_decay",
                "in r",
                "=max_grad_norm",
                "where λ = 0",
            ),
        },
        "The ratio ‖θ‖/‖r‖ is 1 where a norm is 0, and bounded by 1 with timm's trust_clip and\n"
        "optlab's max_trust_ratio=1.",
    ),
    "muon": Comparison(
        "m ← μm + (1−μ)g;  d = m, with Nesterov μm + (1−μ)g;  O = orthogonal factor of d;\n"
        "θ ← θ − η(s·O + λθ)",
        ("η", "λ", "μ", "Nesterov", "s", "d is divided by", "matrices", "others"),
        {
            OPTLAB: (
                "=learning_rate",
                "=weight_decay",
                "=beta",
                "=nesterov",
                "0.2√max(in, out)",
                "‖d‖ + ε",
                "hidden, by name",
                "AdamW",
            ),
            PYTORCH: (
                "=lr",
                "=weight_decay",
                "=momentum",
                "=nesterov",
                "√max(1, out/in)",
                "max(‖d‖, ε)",
                "all",
                "refused",
            ),
            KERAS: (
                "=learning_rate",
                "=weight_decay",
                "=momentum",
                "=nesterov",
                "0.2√max(in, out)",
                "‖d‖ + ε",
                "two axes, no embeddings",
                "AdamW",
            ),
            OPTAX: (
                "=learning_rate",
                "=weight_decay",
                "=beta",
                "=nesterov",
                "√max(1, out/in)",
                "‖d‖ + ε",
                "two axes",
                "NAdamW",
            ),
            TIMM: (
                "=lr",
                "=weight_decay",
                "=momentum",
                "=nesterov",
                "0.2√max(in, out)",
                "max(‖d‖, ε)",
                "by shape",
                "AdamW",
            ),
        },
        "ε is 1e-8 in Optax, 1e-7 elsewhere. Keras' m and d are sums, μm + g. Of Optax this is\n"
        "contrib.muon, where d is m/(1−μᵗ), with Nesterov μm/(1−μᵗ⁺¹) + (1−μ)g/(1−μᵗ). timm takes\n"
        "You's coefficients, all others Keller Jordan's. PyTorch and timm compute the factor in\n"
        "bfloat16, their dialects in float32 unless ns_dtype says otherwise.",
    ),
    "clip": Comparison(
        "g gradient, ‖g‖ norm of all leaves, c bound",
        ("function", "clipped to norm c", "where ‖g‖ is not finite"),
        {
            OPTLAB: ("clip_by_global_norm", "g·min(1, c/‖g‖)", "unchanged"),
            PYTORCH: ("clip_grad_norm", "g·min(1, c/(‖g‖ + 1e-6))", "finite elements 0 or all NaN"),
            KERAS: ("global_clipnorm=", "g·c/max(‖g‖, c)", "all NaN"),
            TENSORFLOW1: ("clip_by_global_norm", "g·c/max(‖g‖, c)", "all NaN"),
            OPTAX: (
                "clip_by_global_norm",
                "g if ‖g‖ < c, else g/‖g‖·c",
                "finite elements 0 or all NaN",
            ),
        },
        "In the dialects of PyTorch, Keras and TensorFlow, too, gradients of a non-finite norm\n"
        "pass unchanged, for optlab.skip_nonfinite to see; that of Optax does as Optax. Keras'\n"
        "clipnorm is a bound on each leaf's own norm. Where squares overflow though gradients are\n"
        "finite, all frameworks clip to 0 or NaN, and optlab and its dialects to c.",
    ),
}


def table(rule: str, width: int | None = None) -> str:
    """Return one rule in all dialects, side by side, as text.

    Args:
        rule: "sgd", "adagrad", "rmsprop", "adam", "adamw", "lars", "lamb", "muon" or
            "clip".
        width: columns of text there is room for; a table that is wider comes as lists, one below
            the other. None for no bound.

    Returns:
        The formula, a line a dialect with the defaults of its arguments, and notes.

    Raises:
        ValueError: there is no such rule.

    Example:
        >>> print(table("adamw").splitlines()[4])  # doctest: +NORMALIZE_WHITESPACE
        PyTorch lr=0.001 betas=(0.9, 0.999) eps=1e-08 weight_decay=0.01 ηλθ
    """
    if rule not in list(TABLES):
        rules = ", ".join(TABLES)
        _checks.fail("dialects.table", f"rule must be one of {rules}", f"rule={rule!r}")
    comparison = TABLES[rule]
    lines = [["", *comparison.columns]]
    for dialect, cells in comparison.rows.items():
        module = optax.contrib if (dialect, rule) == (OPTAX, "muon") else MODULES[dialect]
        function = getattr(module, rule, transforms.clip_by_global_norm)
        lines.append([dialect, *(_with_defaults(cell, function) for cell in cells)])
    rows = _aligned(lines)
    if width is not None and max(map(_width, rows)) > width:
        rows = [
            "\n".join(
                [dialect, *_aligned(zip(comparison.columns, cells, strict=True), indent="  ")]
            )
            for dialect, *cells in lines[1:]
        ]
    heading = f"{rule}: {comparison.formula}"
    return "\n".join([heading, "", *rows, *(["", comparison.notes] if comparison.notes else [])])


def _aligned(lines: Iterable[Sequence[str]], indent: str = "") -> list[str]:
    """Return lines of cells as lines of text with the cells below each other."""
    lines = list(lines)
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    return [
        indent
        + "  ".join(
            cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]


def _width(text: str) -> int:
    """Return the columns that a text takes; a hat takes none."""
    return sum(not unicodedata.combining(letter) for letter in text)


def _with_defaults(cell: str, function: Callable[..., object]) -> str:
    """Return a cell with the defaults that it asks for."""
    if not cell.startswith("="):
        return cell
    parameters = inspect.signature(function).parameters
    defaults = []
    for name in (part.removeprefix("=") for part in cell.split(", ")):
        default = parameters[name].default
        defaults.append(name if default is inspect.Parameter.empty else f"{name}={default}")
    return ", ".join(defaults)
