"""How fast optlab's optimizers are: `python -m benchmarks` from the repository's root.

Other scripts in this folder answer other questions: what training in bfloat16 loses, how good the
suggested learning rates are, how fast sweeps run, and how often diagnoses are right.
"""
