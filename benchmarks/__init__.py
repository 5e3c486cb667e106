"""How fast optlab's optimizers are: `python -m benchmarks` from the repository's root.

Beside it stand scripts of their own, on other questions: what training in bfloat16 loses, how good
suggested learning rates are, how fast sweeps run, what diagnoses are worth.
"""
