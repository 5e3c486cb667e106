"""Golden trajectories: what PyTorch, Keras and Optax themselves do, recorded once and replayed.

`problems` gives the gradients and the rates, `cases` the optimizers, `record` runs the frameworks
(`python tests/golden/record.py pytorch`), `store` reads and writes what they did, `replay` runs
optlab's dialects over the same, and `report` prints how well they agree. `schedule_cases` and
`record_schedules` do the same for the schedules of PyTorch and Hugging Face.
"""
