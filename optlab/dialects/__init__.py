"""The same rules as other frameworks write them: their arithmetic, argument names and defaults.

`optlab.dialects.pytorch`, `.keras` and `.tensorflow1` each have `sgd`, `adagrad`, `rmsprop`,
`adam`, `adamw` and the framework's clipping. `.keras` and `.timm` have LAMB, `.timm` LARS, and
`.pytorch`, `.keras` and `.timm` Muon. They are built of the rules of `optlab.optimizers`, so that
everything said of these holds: any hyperparameter may be a schedule, moments are at least float32,
and `optlab.hyperparams` reads the state, under optlab's names.

    tx = optlab.dialects.pytorch.adamw(lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)

`optlab.dialects.pytorch.lr_scheduler` and `optlab.dialects.huggingface` are the schedules of
PyTorch and of Hugging Face's transformers, under their names and with their arguments.

`optlab.dialects.optax` is all of Optax's namespace, to be imported in its place. The same rules
stand there under Optax's names, with Optax's arguments and states; Muon in its `contrib`.

PyTorch, Keras, timm and Optax are checked against trajectories recorded from them (`tests/golden`),
over 300 updates with a changing rate: to 1e-12 in float64, and in float32 to 2 units in the last
place of a leaf's largest element an update (at most 90 after 300; `tests/golden/report.py` prints
all). Muon was recorded over 60 updates in float64 alone; float32 is within 1e-5 of that. TensorFlow
1 follows its documented kernels and was not recorded. A run is carried over from PyTorch with
`pytorch.from_state_dict` and `pytorch.to_state_dict`, from Optax with `optax.from_state` and
`optax.to_state`.

All dialects side by side, as `optlab dialects` prints them:

"""

from optlab.dialects import huggingface, keras, optax, pytorch, tensorflow1, timm
from optlab.dialects._table import TABLES, table

__all__ = ["huggingface", "keras", "optax", "pytorch", "table", "tensorflow1", "timm"]

__doc__ = (__doc__ or "") + "\n\n".join(map(table, TABLES)) + "\n"
