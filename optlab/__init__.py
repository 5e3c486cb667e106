"""Functional optimizers for JAX: composable, checked against float64 references, quick to read.

Every optimizer and transformation is an `optax.GradientTransformation`; schedules are Optax's own
type. `optlab.dialects` has the rules as other frameworks write them, `optlab.reference` in NumPy
float64; `optlab.lab` has the tools to choose between them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_ROOMS = {"dialects", "groups", "lab", "mup", "native", "optimizers", "plots", "reference"}
_ROOMS |= {"registry", "regularization", "rules", "scaling", "schedules", "sharding", "testing"}
_ROOMS |= {"transforms", "wrappers"}

_SOURCES = ("optimizers", "transforms", "wrappers", "_describe", "_inspect", "_tree")
"""The modules that have the public functions and classes, in which a name is looked up."""

if TYPE_CHECKING:
    from optlab import dialects, groups, reference, rules, schedules
    from optlab import lab as lab
    from optlab import mup as mup
    from optlab import native as native
    from optlab import plots as plots
    from optlab import regularization as regularization
    from optlab import scaling as scaling
    from optlab import sharding as sharding
    from optlab import testing as testing
    from optlab._describe import describe
    from optlab._inspect import hyperparams, replace_hyperparams
    from optlab._tree import global_norm
    from optlab.optimizers import (
        adafactor,
        adagrad,
        adam,
        adamw,
        lamb,
        lars,
        lbfgs,
        lion,
        muon,
        rmsprop,
        scale_by_adafactor,
        scale_by_adagrad,
        scale_by_adam,
        scale_by_lamb,
        scale_by_lars,
        scale_by_lbfgs,
        scale_by_lion,
        scale_by_momentum,
        scale_by_muon,
        scale_by_rmsprop,
        scale_by_shampoo,
        scale_by_soap,
        sgd,
        shampoo,
        soap,
    )
    from optlab.transforms import (
        PowerEmaSnapshot,
        add_decayed_weights,
        averaged_params,
        clip_by_global_norm,
        clip_by_value,
        params_average,
        params_ema,
        params_lawa,
        params_power_ema,
        power_ema_snapshot,
        reconstruct,
        reconstruction_error,
        reduce_on_plateau,
        scale_by_learning_rate,
    )
    from optlab.wrappers import (
        accumulate,
        dynamic_loss_scale,
        kahan_summation,
        loss_scale,
        master_params,
        monitor,
        monitored,
        skip_counts,
        skip_nonfinite,
        stochastic_rounding,
    )

else:
    # What is public is imported when it is first used. So the command line can answer before JAX
    # is loaded, and a program that does not use an extra does not need it.
    def __getattr__(name: str) -> Any:
        if name in _ROOMS:
            return import_module(f"{__name__}.{name}")
        for source in _SOURCES if name in __all__ else ():
            module = import_module(f"{__name__}.{source}")
            if hasattr(module, name):
                return globals().setdefault(name, getattr(module, name))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_ROOMS})


__version__ = "0.1.0"

__all__ = [
    "PowerEmaSnapshot",
    "accumulate",
    "adafactor",
    "adagrad",
    "adam",
    "adamw",
    "add_decayed_weights",
    "averaged_params",
    "clip_by_global_norm",
    "clip_by_value",
    "describe",
    "dialects",
    "dynamic_loss_scale",
    "global_norm",
    "groups",
    "hyperparams",
    "kahan_summation",
    "lamb",
    "lars",
    "lbfgs",
    "lion",
    "loss_scale",
    "master_params",
    "monitor",
    "monitored",
    "muon",
    "mup",
    "native",
    "params_average",
    "params_ema",
    "params_lawa",
    "params_power_ema",
    "power_ema_snapshot",
    "reconstruct",
    "reconstruction_error",
    "reduce_on_plateau",
    "reference",
    "regularization",
    "replace_hyperparams",
    "rmsprop",
    "rules",
    "scale_by_adafactor",
    "scale_by_adagrad",
    "scale_by_adam",
    "scale_by_lamb",
    "scale_by_lars",
    "scale_by_lbfgs",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_momentum",
    "scale_by_muon",
    "scale_by_rmsprop",
    "scale_by_shampoo",
    "scale_by_soap",
    "scaling",
    "schedules",
    "sgd",
    "shampoo",
    "skip_counts",
    "skip_nonfinite",
    "soap",
    "stochastic_rounding",
]
