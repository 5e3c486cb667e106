"""The parameters of well-known networks: their shapes, and initial arrays.

Convolution kernels are (height, width, in, out), dense ones (in, out). The numbers of leaves and of
parameters are those of the published models; they are checked whenever shapes are made.
"""

import math

import numpy as np

Shapes = dict[str, tuple[int, ...]]
Arrays = dict[str, np.ndarray]

SCALE = 0.02
"""Standard deviation of the parameters and of the gradients."""

LEAST = np.float32(1e-4)
"""The smallest gradient."""


def resnet50() -> Shapes:
    """ResNet-50 (He et al. 2015) as in torchvision, with the classifier of ImageNet."""

    def convolution(name, size, channels, features):
        return {
            f"{name}.kernel": (size, size, channels, features),
            f"{name}.norm.scale": (features,),
            f"{name}.norm.bias": (features,),
        }

    shapes = convolution("stem", 7, 3, 64)
    channels = 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(blocks):
            name = f"stage{stage}.block{block}"
            if block == 0:
                shapes |= convolution(f"{name}.shortcut", 1, channels, 4 * width)
            shapes |= convolution(f"{name}.reduce", 1, channels, width)
            shapes |= convolution(f"{name}.middle", 3, width, width)
            shapes |= convolution(f"{name}.expand", 1, width, 4 * width)
            channels = 4 * width
    return shapes | _dense("head", channels, 1000)


def vit_b16() -> Shapes:
    """ViT-B/16 (Dosovitskiy et al. 2021) for images of 224 × 224 in 1000 classes."""
    width, patch = 768, 16
    shapes = {
        "patches.kernel": (patch, patch, 3, width),
        "patches.bias": (width,),
        "class_token": (1, 1, width),
        "positions": (1, (224 // patch) ** 2 + 1, width),
    }
    return shapes | _transformer(12, width) | _dense("head", width, 1000)


def gpt2() -> Shapes:
    """GPT-2 of 124 million parameters (Radford et al. 2019): biases, and one tied embedding."""
    return {"tokens": (50257, 768), "positions": (1024, 768)} | _transformer(12, 768)


def gpt2_matrices(depth: int = 12, width: int = 768) -> Shapes:
    """The hidden matrices of GPT-2, with query, key and value apart."""
    shapes: Shapes = {}
    for i in range(depth):
        for name in ("query", "key", "value", "out"):
            shapes[f"block{i:02}.{name}.kernel"] = (width, width)
        shapes[f"block{i:02}.mlp.in.kernel"] = (width, 4 * width)
        shapes[f"block{i:02}.mlp.out.kernel"] = (4 * width, width)
    return dict(sorted(shapes.items()))


def many(count: int = 1000) -> Shapes:
    """Vectors of 3500 numbers, which show the cost of each leaf."""
    return {f"leaf{i:04}": (3500,) for i in range(count)}


def tiny() -> Shapes:
    """A few small leaves, to try things out."""
    return {"kernel": (3, 3, 8, 16), "bias": (16,), "embedding": (500, 32)}


def _dense(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.kernel": (inputs, outputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.scale": (width,), f"{name}.bias": (width,)}


def _transformer(depth: int, width: int) -> Shapes:
    shapes = {}
    for i in range(depth):
        shapes |= _norm(f"block{i:02}.norm1", width)
        shapes |= _dense(f"block{i:02}.attention.qkv", width, 3 * width)
        shapes |= _dense(f"block{i:02}.attention.out", width, width)
        shapes |= _norm(f"block{i:02}.norm2", width)
        shapes |= _dense(f"block{i:02}.mlp.in", width, 4 * width)
        shapes |= _dense(f"block{i:02}.mlp.out", 4 * width, width)
    return shapes | _norm("norm", width)


SHAPES = {"resnet50": resnet50, "vit-b16": vit_b16, "gpt2": gpt2, "many": many, "tiny": tiny}

COUNTS = {
    "resnet50": (161, 25_557_032),
    "vit-b16": (152, 86_567_656),
    "gpt2": (148, 124_439_808),
    "many": (1000, 3_500_000),
    "tiny": (3, 17_168),
}
"""Name → the numbers of leaves and of parameters."""


def num_params(shapes: Shapes) -> int:
    """Return the number of parameters."""
    return sum(map(math.prod, shapes.values()))


def shapes_of(name: str) -> Shapes:
    """Return the shapes of that name, with their counts checked, in the order of JAX's leaves."""
    shapes = dict(sorted(SHAPES[name]().items()))
    assert (len(shapes), num_params(shapes)) == COUNTS[name], name
    return shapes


def describe(name: str) -> str:
    """Return the name with the numbers of leaves and parameters."""
    leaves, params = COUNTS[name]
    return f"{name} ({leaves:,} leaves, {params:,} parameters)"


def start(shapes: Shapes) -> tuple[Arrays, Arrays]:
    """Return parameters and gradients: float32, normal, the same at every call.

    No gradient is nearer to 0 than LEAST, so that it does not matter where a rule adds its ε.
    """
    params, gradients = (
        {
            name: SCALE * np.random.default_rng([i, seed]).standard_normal(shape, np.float32)
            for i, (name, shape) in enumerate(shapes.items())
        }
        for seed in range(2)
    )
    return params, {name: g + np.copysign(LEAST, g) for name, g in gradients.items()}
