"""What an array of a model is for, told by its path and its shape, and which of its axes mean what.

The names are those that Flax NNX and Linen, Equinox and common language models give. Flax keeps a
linear map as (in, out), a convolution as (height, width, in, out), and the maps of attention as
(in, heads, width) and (heads, width, out). Equinox keeps (out, in) and (out, in, height, width).
"""

import math
import re
from functools import lru_cache
from typing import Literal, NamedTuple

Role = Literal["matrix", "embedding", "head", "input", "other"]


class Axes(NamedTuple):
    """Which axes of an array are the input, the output and the batch of a linear map.

    An array with neither input nor output is no linear map: `Axes()` says so.

    Attributes:
        input: the axes that are summed over when the map is applied.
        output: the axes that the result has.
        batch: the axes that count independent maps, as of stacked layers, of experts or of heads.
        split: the sizes of the independent maps that stand side by side in the output, as of a
            fused query, key and value; () for one map. They add up to the size of the output.
    """

    input: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    batch: tuple[int, ...] = ()
    split: tuple[int, ...] = ()


class Meaning(NamedTuple):
    """What the names say of an array.

    Attributes:
        role: "matrix" for a hidden linear map; "embedding", "head" or "input" for one at an end of
            the model; "other" for anything else.
        axes: which axes are input, output and batch.
        doubt: why a person should look at it, or "".
    """

    role: Role
    axes: Axes
    doubt: str = ""


_VECTORS = {"bias", "scale", "b", "beta", "gamma", "mean", "var"}
_NORMS = {"ln", "bn", "gn"}
_EMBEDDINGS = {"wte", "wpe", "emb", "vocab", "token", "tokens", "positional", "position"}
_HEADS = {"logits", "classifier", "readout", "unembed", "unembedding"}
_STACKS = {"layers", "blocks", "stack", "stacked", "scan", "scanned"}
_EXPERTS = {"expert", "experts", "moe"}
_ATTENTION = ("attn", "attention", "mha")
_PROJECTIONS = {"query", "key", "value"}
_OUTPUTS = {"out", "o", "wo", "output"}
_FUSED = {"qkv", "kqv", "qkvproj", "inproj", "querykeyvalue"}
_FEW_CHANNELS = 4
"""A convolution of at most so many input channels reads images or is one map a channel."""


def default_axes(path: str, shape: tuple[int, ...]) -> Axes:
    """Return the axes that the names on a path give an array; see `meaning`."""
    return meaning(path, shape).axes


@lru_cache(maxsize=65536)
def meaning(path: str, shape: tuple[int, ...]) -> Meaning:
    """Return what an array is for and what its axes mean, by its path and its shape.

    Biases, scales and whatever belongs to a norm are "other". Names decide what is an embedding or
    a head; a convolution of at most four input channels is an "input". Leading axes are a batch
    under `layers`, `blocks`, `stack` or `scan` without a number, and under `experts` or `moe`. Both
    the output of attention, (heads, width, out), and its three maps, (in, heads, width), are one
    matrix. A fused `qkv` whose output is three times its input is split in three.
    """
    *modules, name = path.split("/")
    words = [_words(module) for module in modules]
    owner = words[-1] if words else []
    everything = {word for module in words for word in module}
    if len(shape) < 2 or name.lower() in _VECTORS or any(map(_is_norm, [*words, _words(name)])):
        return Meaning("other", Axes())
    lead = _batch_axes(modules, words, len(shape))
    core = len(shape) - lead
    is_equinox = name == "weight"
    kind = {*owner, *_words(name)}
    is_projection = bool(kind & _PROJECTIONS) and not is_equinox
    in_attention = any(word.startswith(_ATTENTION) for word in everything)
    is_output = bool(kind & _OUTPUTS) and in_attention and not is_equinox
    if core > 3 and (is_projection or is_output):
        lead, core = lead + core - 3, 3
    is_fused = _is_fused(owner) and not is_equinox
    is_conv = any(word.startswith("conv") for word in everything)
    is_conv = is_conv or (core > 3 and not is_fused)
    doubt = ""
    if _is_embedding([*everything, *_words(name)]):
        return Meaning("embedding", _last_out(shape, lead))
    if core == 3 and not is_conv:
        if is_projection:
            axes = _named(lead, 1, 2)
        elif is_output:
            axes = _named(lead, 2, 1)
        elif is_fused and shape[lead + 1] == 3:
            batch = (*range(lead), lead + 1)
            axes = Axes((lead,), (lead + 2,), batch)
        else:
            lead, core = lead + 1, 2
            axes = _first_out(shape, lead) if is_equinox else _last_out(shape, lead)
            doubt = "its first axis is taken for a stack of layers"
    elif core == 4 and is_fused and shape[lead + 1] == 3:
        axes = Axes((lead,), (lead + 2, lead + 3), (*range(lead), lead + 1))
    else:
        axes = _first_out(shape, lead) if is_equinox else _last_out(shape, lead)
    if core == 2 and _is_fused(owner):
        size_in, size_out = size(shape, axes.input), size(shape, axes.output)
        if size_out == 3 * size_in:
            axes = axes._replace(split=(size_in,) * 3)
        else:
            doubt = "it looks like a fused query, key and value and is taken for one matrix"
    if _is_head(words, name):
        return Meaning("head", axes)
    if is_conv and core > 2 and shape[lead + 1 if is_equinox else -2] <= _FEW_CHANNELS:
        return Meaning("input", axes)
    if min(size(shape, axes.input), size(shape, axes.output)) < 2:
        return Meaning("other", axes)
    return Meaning("matrix", axes, doubt)


def size(shape: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """Return how many elements axes of a shape have together."""
    return math.prod(shape[axis] for axis in axes)


@lru_cache(maxsize=4096)
def _split_words(name: str) -> tuple[str, ...]:
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    return tuple(part.lower() for part in parts)


def _words(name: str) -> list[str]:
    """Return the words of a name, without numbers: "Dense_0" → dense, "lmHead" → lm, head."""
    return [word for word in _split_words(name) if not word.isdigit()]


def _is_norm(words: list[str]) -> bool:
    return any(word.endswith("norm") or word in _NORMS for word in words)


def _is_embedding(words: list[str]) -> bool:
    return any(
        (word.startswith("embed") or word in _EMBEDDINGS) and not word.startswith("unembed")
        for word in words
    )


def _is_head(words: list[list[str]], name: str) -> bool:
    """Whether a module ends in "head" (but of no multi-head attention), or is called as one."""
    return any(
        bool(_HEADS & {*module}) or (module[-1:] == ["head"] and "multi" not in module)
        for module in [*words, _words(name)]
    )


def _is_fused(owner: list[str]) -> bool:
    """Whether a module is the query, key and value of attention in one: "qkv", "c_attn"."""
    return bool(_FUSED & {*owner, "".join(owner)}) or owner == ["c", "attn"]


def _batch_axes(modules: list[str], words: list[list[str]], ndim: int) -> int:
    """Return how many leading axes count layers or experts."""
    lead = 0
    for place, (module, own) in enumerate(zip(modules, words, strict=True)):
        follows = modules[place + 1] if place + 1 < len(modules) else ""
        numbered = module[-1:].isdigit() or follows.isdigit()
        is_scan = bool({"scan", "scanned", "stacked"} & {*own})
        lead += bool(_STACKS & {*own}) and (is_scan or not numbered)
    lead = min(lead, 1) + any(_EXPERTS & {*own} for own in words)
    return min(lead, max(ndim - 2, 0))


def _last_out(shape: tuple[int, ...], lead: int) -> Axes:
    ndim = len(shape)
    return Axes(tuple(range(lead, ndim - 1)), (ndim - 1,), tuple(range(lead)))


def _first_out(shape: tuple[int, ...], lead: int) -> Axes:
    return Axes(tuple(range(lead + 1, len(shape))), (lead,), tuple(range(lead)))


def _named(lead: int, inputs: int, outputs: int) -> Axes:
    end = lead + inputs
    return Axes(tuple(range(lead, end)), tuple(range(end, end + outputs)), tuple(range(lead)))
