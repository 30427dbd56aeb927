"""How the files in `weights/` were made: fetch the art, render it, train every part, measure, pack.

Run as `python -m weights.recipe --work DIR` from the root of a checkout; see `weights/README.md`.
"""
