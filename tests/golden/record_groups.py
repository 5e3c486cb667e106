"""Record parameter groups of PyTorch and timm: `python tests/golden/record_groups.py [--check]`.

PyTorch: AdamW with three groups, a schedule, a clip of the global norm, and a group whose
gradients are None, as those of frozen parameters are, in a window at the beginning.
timm: the layers' scales and decays of a small vision transformer.
With --check the file stays as it is, and the largest difference to it is reported.
Needs torch and timm.
"""

import argparse
from pathlib import Path

import numpy as np

RECORDED = Path(__file__).with_name("groups.npz")
UPDATES, FROZEN, MAX_NORM = 30, 12, 1.0
NAMES = "abc"
FACTORS, DECAYS, RATE = (0.25, 0.5, 1.0), (0.1, 0.0, 0.1), 0.1
LAYER_DECAY = 0.5


def start():
    """Return the parameters before the first update."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=(3, 2)) for name in NAMES}


def gradients():
    """Return the gradients by name, (updates, 3, 2)."""
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=(UPDATES, 3, 2)) for name in NAMES}


def schedule(step):
    """Return the factor of the rate at an update, numbered from 0."""
    return 0.97**step


def trajectory():
    """Return the parameters after each update, by name; "a" is frozen at first."""
    import torch

    params = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in start().items()}
    groups = [
        {"params": [params[name]], "lr": RATE * factor, "weight_decay": decay}
        for name, factor, decay in zip(NAMES, FACTORS, DECAYS, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    after = {name: [] for name in NAMES}
    for t in range(UPDATES):
        for name, g in gradients().items():
            params[name].grad = None if name == "a" and t < FROZEN else torch.tensor(g[t])
        # The clip itself, without the 1e-6 that PyTorch adds to the norm.
        present = [p.grad for p in params.values() if p.grad is not None]
        norm = torch.sqrt(sum((g**2).sum() for g in present))
        for g in present:
            g.mul_(min(1.0, MAX_NORM / float(norm)))
        optimizer.step()
        scheduler.step()
        for name, p in params.items():
            after[name].append(p.detach().numpy().copy())
    return {name: np.array(p) for name, p in after.items()}


def layers():
    """Return the names, shapes, scales and decays of the parameters of timm's transformer."""
    from timm.models.vision_transformer import VisionTransformer
    from timm.optim import param_groups_layer_decay

    model = VisionTransformer(
        img_size=8,
        patch_size=4,
        embed_dim=8,
        depth=2,
        num_heads=2,
        num_classes=3,
        global_pool="token",
    )
    names = {id(p): name for name, p in model.named_parameters()}
    groups = param_groups_layer_decay(
        model,
        weight_decay=0.05,
        no_weight_decay_list=model.no_weight_decay(),
        layer_decay=LAYER_DECAY,
    )
    rows = [
        (
            names[id(p)].replace(".", "/"),
            "x".join(map(str, p.shape)),
            own["lr_scale"],
            own["weight_decay"],
        )
        for own in groups
        for p in own["params"]
    ]
    paths, shapes, scales, decays = zip(*sorted(rows), strict=True)
    return {
        "timm/paths": np.array(paths),
        "timm/shapes": np.array(shapes),
        "timm/scales": np.array(scales),
        "timm/decays": np.array(decays),
    }


def load():
    """Return what is recorded."""
    with np.load(RECORDED) as file:
        return dict(file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    arrays = {f"pytorch/{name}": p for name, p in trajectory().items()} | layers()
    if parser.parse_args().check:
        recorded = load()
        assert recorded.keys() == arrays.keys()
        worst = 0.0
        for name, array in arrays.items():
            if array.dtype.kind == "U":
                assert (array == recorded[name]).all()
            else:
                worst = max(worst, float(np.abs(array - recorded[name]).max()))
        print(f"largest difference: {worst:.1e}")
    else:
        np.savez_compressed(RECORDED, **arrays)
