"""Regularization by rule: sparse weights, sparse groups of weights, noise on the weights."""

from optlab.regularization._proximal import group_lasso, l1
from optlab.regularization._weight_noise import weight_noise

__all__ = ["group_lasso", "l1", "weight_noise"]
