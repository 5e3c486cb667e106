"""PyTorch's optimizers (`torch.optim`), its clipping, its schedulers, and its optimizer state.

    sgd       g ← ±g + λθ;  v ← g at update 1, then μv + (1 − τ)g;  θ ← θ − ηv, or θ − η(g + μv)
    adagrad   g ← ±g + λθ;  s ← s + g²;             θ ← θ − η/(1 + (t − 1)·lr_decay) · g/(√s + ε)
    rmsprop   g ← ±g + λθ;  s ← αs + (1 − α)g²;     b ← μb + g/(√s + ε);  θ ← θ − ηb
    adam      g ← ±g + λθ;  m, v averages of g, g²; θ ← θ − η m̂/(√v̂ + ε)
    adamw     g ← ±g;       m, v averages of g, g²; θ ← θ − η (m̂/(√v̂ + ε) + λθ)
    muon      m average of g, d = μm + (1 − μ)g;    θ ← θ − η (s · orthogonal factor of d + λθ)

η is `lr`, λ `weight_decay`, μ `momentum`, τ `dampening`, α `alpha`, ε `eps`; the sign is − with
`maximize`. m̂ = m/(1 − β₁ᵗ) and v̂ = v/(1 − β₂ᵗ) with the present betas, where these are changed
during a run. AMSGrad takes the maximum of v, not of v̂. The orthogonal factor is made of
d/max(‖d‖, ε) by Newton–Schulz steps, and s chosen by `adjust_lr_fn`.

Arguments have PyTorch's names, order and defaults. Those that do not change the arithmetic
(`foreach`, `fused`, `capturable`, `differentiable`) have no place here. Every number may be a
schedule of the count before the update, PyTorch's own among them (`lr_scheduler`); in the state,
`lr` is `learning_rate` and so on, as everywhere in optlab.

What differs, where PyTorch fails: the variance of centered RMSProp is clamped at 0, where rounding
makes it negative and PyTorch's root NaN; finite gradients whose squares overflow count as 2⁶³
(PyTorch's coordinate stops for ever) and are clipped to the bound (PyTorch: to 0); gradients whose
norm is not finite pass the clip unchanged (PyTorch zeroes the finite ones). Updates are counted for
the optimizer, not for each parameter, so a parameter that starts late, its gradient None before, is
freed of less bias: put it into a group of its own. Moments of bfloat16 parameters are float32
(PyTorch: bfloat16), and so are the Newton–Schulz steps of `muon`, which PyTorch makes in bfloat16
for all parameters. Of `clip_grad_norm_` only `norm_type=2` is there.

Reference: pytorch.org/docs/stable/optim.html, and the single-tensor functions in `torch/optim`.
Trajectories are checked against PyTorch 2.13.
"""

from optlab.dialects.pytorch import lr_scheduler
from optlab.dialects.pytorch._rules import (
    adagrad,
    adam,
    adamw,
    clip_grad_norm,
    clip_grad_value,
    muon,
    rmsprop,
    sgd,
)
from optlab.dialects.pytorch._states import from_state_dict, to_state_dict

__all__ = [
    "adagrad",
    "adam",
    "adamw",
    "clip_grad_norm",
    "clip_grad_value",
    "from_state_dict",
    "lr_scheduler",
    "muon",
    "rmsprop",
    "sgd",
    "to_state_dict",
]
