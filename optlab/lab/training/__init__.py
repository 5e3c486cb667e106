"""One run: how it is trained, evaluated, recorded, stopped, and continued."""
