"""The problems on which the frameworks are recorded: gradients of a few parameters at update t.

    g = σ · (f(u) + κ/4 · (f(u₋) + f(u₊)) + noise_t),    u = (θ − centre) / width

u₋ and u₊ are the neighbours of each coordinate in a ring, f(u) is u or the bounded u / (1 + |u|),
and the noise is a sine of growing frequency. The feedback contracts, so that a rounding error fades
and is not blown up; the noise keeps second moments away from 0 and variances away from 0/0.

Every number in a problem is one that float32 holds: the noise is rounded to multiples of 2⁻²⁰, so
that any machine's sine gives the same. The rest is +, −, ×, / in the parameters' type.
"""

from dataclasses import dataclass, replace

import numpy as np

UPDATES = 300
# In the order in which a PyTorch module would list them, which is not the alphabet's.
SHAPES = {"layer.weight": (4, 3), "layer.bias": (3,), "scale": ()}
SIZE = 16

_I = np.arange(SIZE)
_COUNT = np.arange(UPDATES)


def flatten(params):
    """Return all coordinates in one array (…, 16); leaves may have leading axes."""
    return np.concatenate(
        [np.reshape(params[k], (*_leading(params[k], s), -1)) for k, s in SHAPES.items()], axis=-1
    )


def unflatten(flat):
    """Return the leaves of an array (…, 16)."""
    leaves, start = {}, 0
    for name, shape in SHAPES.items():
        stop = start + int(np.prod(shape))
        leaves[name] = flat[..., start:stop].reshape(flat.shape[:-1] + shape)
        start = stop
    return leaves


def _leading(leaf, shape):
    return np.shape(leaf)[: np.ndim(leaf) - len(shape)]


def _rounded(x, bits):
    return np.round(x * 2.0**bits) / 2.0**bits


@dataclass(frozen=True, eq=False)
class Problem:
    """One problem, or several in a leading axis of every array.

    Attributes:
        centre, width, size: (16,); c, width and σ above.
        offset: (16,); θ − centre before the first update.
        coupling: κ.
        bounded: whether f(u) = u / (1 + |u|).
        noise: (updates, 16).
        active: (updates, 16) bool; where False the gradient is exactly 0.
    """

    centre: np.ndarray
    width: np.ndarray
    size: np.ndarray
    offset: np.ndarray
    coupling: np.ndarray
    bounded: np.ndarray
    noise: np.ndarray
    active: np.ndarray

    def start(self, dtype):
        """Return the parameters before the first update."""
        return unflatten((self.centre + self.offset).astype(dtype))

    def gradient(self, params, t):
        """Return the gradient that makes update t = 1, 2, …, in the parameters' type."""
        x = flatten(params)
        centre, width, size, coupling, noise = (
            np.asarray(a, x.dtype)
            for a in (self.centre, self.width, self.size, self.coupling, self.noise[t - 1])
        )
        u = (x - centre) / width
        f = np.where(self.bounded, u / (1 + np.abs(u)), u)
        ring = np.roll(f, 1, axis=-1) + np.roll(f, -1, axis=-1)
        g = size * (f + coupling / 4 * ring + noise)
        return unflatten(np.where(self.active[t - 1], g, np.zeros_like(g)))


def _noise(phase):
    t = _COUNT[:, None] + 1
    return _rounded(np.sin(phase + 0.7 * _I**2 + (1.1 + 0.3 * _I) * t + 0.05 * t**2), 20)


def _silent_at_times():
    """The scale takes no part up to update 30, the bias and half the weights from 50 to 120."""
    active = np.ones((UPDATES, SIZE), bool)
    active[:30, -1] = False
    active[49:120, 12:15] = False
    active[49:120, 0:12:2] = False
    return active


def _badly_scaled():
    """Gradients from 2⁻¹⁵ to 2¹⁵, the sizes of neighbours far apart; wide where they are large."""
    weight = (-13, 11, -9, 7, -5, 3, -3, 9, -7, 5, -11, -1)
    # Two large ones in the bias, for one alone may pass 0, and with it the size of the whole leaf.
    bias, scale = (15, 13, -15), (1,)
    size = 2.0 ** np.array(weight + bias + scale)
    return size, np.maximum(size, 1)


_COUPLED = Problem(
    centre=(-1.0) ** _I * (1 + 7 * _I % 16 / 16),
    width=np.ones(SIZE),
    size=0.5 + 3 * _I % 16 / 16,
    offset=(5 * _I + 3) % 16 / 8 - 1,
    coupling=np.ones(1),
    bounded=np.zeros(1, bool),
    noise=_noise(0),
    active=np.ones((UPDATES, SIZE), bool),
)

PROBLEMS = {
    "coupled": _COUPLED,
    "silent": replace(_COUPLED, noise=_noise(1), active=_silent_at_times()),
    "scaled": replace(
        _COUPLED,
        **dict(zip(("size", "width"), _badly_scaled(), strict=True)),
        coupling=np.zeros(1),
        bounded=np.ones(1, bool),
        noise=_noise(2),
    ),
}


def stacked():
    """Return all problems as one, each array with a leading axis over them."""
    problems = PROBLEMS.values()
    # Time stays in front: row t − 1 of noise and active is that of update t.
    axes = {"noise": 1, "active": 1}
    return Problem(
        **{
            name: np.stack([getattr(p, name) for p in problems], axis=axes.get(name, 0))
            for name in Problem.__dataclass_fields__
        }
    )


def _cosine(count, start, stop):
    return (1 + np.cos(np.pi * (count - start) / (stop - start))) / 2


# The learning rate's factor at each count: 20 updates of warm-up, a cosine, and a jump up at 150.
RATE = _rounded(
    np.select(
        [_COUNT < 20, _COUNT < 150],
        [(_COUNT + 1) / 20, 0.1 + 0.9 * _cosine(_COUNT, 20, 150)],
        0.05 + 0.55 * _cosine(_COUNT, 150, UPDATES),
    ),
    30,
)
# From 1 down to 0 and back in 120 updates, for hyperparameters that move between two values.
WAVE = _rounded(_cosine(_COUNT, 0, 60), 30)
