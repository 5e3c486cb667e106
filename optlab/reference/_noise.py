"""The size and the noise of a gradient, from the gradients of several batches.

    E‖gᵢ‖² = ‖G‖² + S/bᵢ        E‖ḡ‖² = ‖G‖² + S/Σb,  ḡ = Σ bᵢ·gᵢ / Σb

gᵢ is the mean gradient of bᵢ examples, G the gradient of the whole loss, S the trace of the
covariance of one example's gradient. The mean of the first over the batches, and the second, are
two equations for ‖G‖² and S. With equal batches S is b times the trace of the unbiased covariance
of the gᵢ.

Reference: McCandlish, Kaplan, Amodei, arXiv:1812.06162 (2018), appendix A.1.
"""

import numpy as np


def noise_estimate(gradients, sizes):
    """Return the estimates of ‖G‖² and S from the gradients of several batches.

    Args:
        gradients: (k, d), the gradients of k ≥ 2 batches at the same parameters.
        sizes: (k,), the examples in each.

    Returns:
        (‖G‖²̂, Ŝ), floats; the first may be negative.

    Example:
        >>> noise_estimate([[3, 1], [1, -1]], [1, 1])
        (2.0, 4.0)
    """
    gradients, sizes = np.asarray(gradients, np.float64), np.asarray(sizes, np.float64)
    mean = sizes @ gradients / sizes.sum()
    left = [[1.0, np.mean(1 / sizes)], [1.0, 1 / sizes.sum()]]
    right = [np.mean(np.sum(gradients**2, axis=1)), np.sum(mean**2)]
    squared_norm, trace = np.linalg.solve(left, right)
    return float(squared_norm), float(trace)
