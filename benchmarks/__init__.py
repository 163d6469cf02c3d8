"""Benchmarks: one script per question, which writes benchmarks/results/<question>.json.

`python -m benchmarks` runs all but the heavy ones, `python -m benchmarks age` runs one.
"""
