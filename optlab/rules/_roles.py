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


_VECTORS = {"bias", "scale", "gain", "b", "beta", "gamma", "mean", "var"}
_NORMS = {"ln", "bn", "gn"}
_EMBEDDINGS = {"wte", "wpe", "emb", "vocab", "token", "tokens", "positional", "position"}
_HEADS = {"logits", "classifier", "readout", "unembed", "unembedding"}
_STACKS = {"layers", "blocks", "stack", "stacked", "scan", "scanned"}
_EXPERTS = {"expert", "experts", "moe"}
_ATTENTION = ("attn", "attention", "mha")
_PROJECTIONS = {"query", "key", "value", "q", "k", "v", "wq", "wk", "wv"}
_OUTPUTS = {"out", "o", "wo", "output"}
_FUSED = {"qkv": 3, "kqv": 3, "wqkv": 3, "qkvproj": 3, "inproj": 3, "querykeyvalue": 3, "cattn": 3}
_FUSED |= {"kv": 2, "wkv": 2, "kvproj": 2, "keyvalue": 2}
_GATES = {"ih", "hh"}
_MAYBE_HEADS = {"output", "fc", "final", "lm", "decoder"}
_FEW_CHANNELS = 4
"""A convolution of at most so many input channels reads images or is one map a channel."""

_LARGE_WINDOW = 16
"""The largest side of a convolution's window that needs no doubt."""


def default_axes(path: str, shape: tuple[int, ...]) -> Axes:
    """Return the axes that the names on a path give an array; see `meaning`."""
    return meaning(path, shape).axes


@lru_cache(maxsize=65536)
def meaning(path: str, shape: tuple[int, ...]) -> Meaning:
    """Return what an array is for and what its axes mean, by its path and its shape.

    Biases, scales and whatever a norm owns are "other". Names decide what is an embedding or a
    head; a convolution of at most four input channels is an "input". Leading axes are a batch under
    `layers`, `blocks`, `stack` or `scan` without a number, and under `experts` or `moe`; a vector
    for each layer is "other". Both the output of attention, (heads, width, out), and its three
    maps, (in, heads, width), are one matrix. A fused `qkv` or `kv` is split, by an axis of 3 or 2
    numbers or into equal parts of its output.
    """
    *modules, name = path.split("/")
    words, own = [_words(module) for module in modules], _words(name)
    owner = words[-1] if words else []
    is_vector = bool(_VECTORS & {*own}) or _is_norm(owner) or _is_norm(own)
    lead = _batch_axes(modules, words)
    is_named_map = bool({"kernel", "weight", "w"} & {*own})
    if len(shape) < 2 or is_vector or (len(shape) - lead < 2 and not is_named_map):
        return Meaning("other", Axes())
    lead = min(lead, len(shape) - 2)
    if _is_embedding(words, own):
        return Meaning("embedding", _last_out(shape, lead))
    axes, doubt = _linear(shape, lead, words, owner, own)
    if _is_head([*words, own]):
        return Meaning("head", axes)
    is_conv = len(axes.input) > 1 and not {*owner, *own} & _OUTPUTS
    channels = sorted(axes.input)[0 if own[-1:] == ["weight"] else -1]
    if is_conv and shape[channels] <= _FEW_CHANNELS:
        return Meaning("input", axes)
    if min(size(shape, axes.input), size(shape, axes.output)) < 2:
        return Meaning("other", axes)
    alone = [module for module in modules if module != "params"]
    if len(alone) == 1 and _MAYBE_HEADS & {*owner} and not doubt:
        doubt = "its name may be that of a head"
    return Meaning("matrix", axes, doubt)


def _linear(
    shape: tuple[int, ...], lead: int, words: list[list[str]], owner: list[str], own: list[str]
) -> tuple[Axes, str]:
    """Return the axes of a linear map behind its leading batch axes, and a doubt or ""."""
    core, kind = len(shape) - lead, {*owner, *own}
    # Equinox keeps the output first, as in `weight` and in the `weight_hh` of its cells.
    is_output_first = "weight" in own
    in_attention = any(word.startswith(_ATTENTION) for module in words for word in module)
    if "einsum" in kind:
        return _last_out(shape, lead), "it is the operand of an einsum, whose axes its name hides"
    if parts := _parts(owner, own):
        return _fused(shape, lead, parts, is_output_first)
    if core > 2 and not is_output_first:
        if kind & _PROJECTIONS:
            return _named(len(shape) - 3, 1, 2), ""
        if kind & _OUTPUTS and in_attention:
            return _named(len(shape) - 3, 2, 1), ""
    doubt = ""
    if core == 3 and not any(word.startswith("conv") for word in owner):
        lead, doubt = lead + 1, "its first axis is taken for a stack of layers"
    elif core > 3:
        window = shape[lead + 2 :] if is_output_first else shape[lead:-2]
        if len({*window}) > 1 or window[0] > _LARGE_WINDOW:
            doubt = "it is taken for the kernel of a convolution"
    if _GATES & {*own}:
        doubt = "it is taken for one matrix, the gates of a cell side by side"
    return (_first_out if is_output_first else _last_out)(shape, lead), doubt


def _parts(owner: list[str], own: list[str]) -> int:
    """Return how many maps of attention are fused, by the name of their module; 0 for none."""
    own = [word for word in own if word not in ("weight", "kernel", "w")]
    names = [*owner, *own, "".join(owner), "".join(own)]
    return max((_FUSED.get(name, 0) for name in names), default=0)


def _fused(
    shape: tuple[int, ...], lead: int, parts: int, is_output_first: bool
) -> tuple[Axes, str]:
    """Return the axes of the fused maps of attention, and a doubt or ""."""
    rest = list(range(lead, len(shape)))
    if len(rest) > 2:
        of_parts = next((axis for axis in rest if shape[axis] == parts), None)
        if of_parts is not None:
            rest.remove(of_parts)
            return Axes((rest[0],), tuple(rest[1:]), (*range(lead), of_parts)), ""
        return _last_out(shape, lead), "it looks like fused maps of attention and is not split"
    axes = (_first_out if is_output_first else _last_out)(shape, lead)
    size_in, size_out = size(shape, axes.input), size(shape, axes.output)
    if size_out == parts * size_in or (parts == 2 and size_out % 2 == 0):
        return axes._replace(split=(size_out // parts,) * parts), ""
    return axes, "it looks like fused maps of attention and is not split"


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


def _is_embedding(words: list[list[str]], own: list[str]) -> bool:
    """Whether a module is an embedding, or the owner or the array is called after tokens."""
    everything = [word for module in [*words, own] for word in module]
    last = [module[-1] for module in [*words[-1:], own] if module]
    return any(word.startswith("embed") for word in everything) or bool(_EMBEDDINGS & {*last})


def _is_head(words: list[list[str]]) -> bool:
    """Whether a module ends in "head" (but of no multi-head attention), or is called as one."""
    return any(
        bool(_HEADS & {*module}) or (module[-1:] == ["head"] and "multi" not in module)
        for module in words
    )


def stack_of(path: str) -> str | None:
    """Return the path of the stack of layers that an array's first axis counts; None for none."""
    modules = path.split("/")[:-1]
    place = _place_of_stack(modules, [_words(module) for module in modules])
    return None if place is None else "/".join(modules[: place + 1])


def is_norm_path(path: str) -> bool:
    """Whether a norm owns an array, by the names on its path."""
    return any(_is_norm(_words(name)) for name in path.split("/"))


def _place_of_stack(modules: list[str], words: list[list[str]]) -> int | None:
    """Return which module is a stack of layers, by the names; None if none is."""
    for place, (module, own) in enumerate(zip(modules, words, strict=True)):
        follows = modules[place + 1] if place + 1 < len(modules) else ""
        numbered = module[-1:].isdigit() or follows.isdigit()
        is_scan = bool({"scan", "scanned", "stacked"} & {*own})
        if _STACKS & {*own} and (is_scan or not numbered):
            return place
    return None


def _batch_axes(modules: list[str], words: list[list[str]]) -> int:
    """Return how many leading axes count layers or experts, by the names."""
    is_stack = _place_of_stack(modules, words) is not None
    return is_stack + any(_EXPERTS & {*own} for own in words)


def _last_out(shape: tuple[int, ...], lead: int) -> Axes:
    ndim = len(shape)
    return Axes(tuple(range(lead, ndim - 1)), (ndim - 1,), tuple(range(lead)))


def _first_out(shape: tuple[int, ...], lead: int) -> Axes:
    return Axes(tuple(range(lead + 1, len(shape))), (lead,), tuple(range(lead)))


def _named(lead: int, inputs: int, outputs: int) -> Axes:
    end = lead + inputs
    return Axes(tuple(range(lead, end)), tuple(range(end, end + outputs)), tuple(range(lead)))
