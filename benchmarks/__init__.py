"""One script a question; each writes benchmarks/results/<question>.json. `python -m benchmarks` runs all, `python -m benchmarks age` one."""
