"""The options of each command, and what refuses them before JAX is loaded.

A file for each command: `add` declares its options, `check` refuses those that do not fit.
"""
