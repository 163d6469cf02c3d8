"""Runs benchmarks by name, or all except the heavy ones, and writes their figures into the README."""

import subprocess
import sys

QUESTIONS = ("mapping", "update", "whole", "age", "overload", "reads", "restore", "disk", "memory", "tower", "drift")
HEAVY = (
    "plumbing", "encoders", "weekly", "compress", "quotas", "peers", "towers", "swap",
    "soak", "job", "processes", "partitions", "cost", "tablets", "retrain",
)  # fmt: skip
"""Benchmarks that take minutes or need an environment of their own. They run by name only."""

if strange := set(sys.argv[1:]) - {*QUESTIONS, *HEAVY}:
    sys.exit(f"{min(strange)}: no such benchmark; there are {', '.join((*QUESTIONS, *HEAVY))}")
for question in sys.argv[1:] or QUESTIONS:
    subprocess.run([sys.executable, "-m", f"benchmarks.{question}"], check=True)
subprocess.run([sys.executable, "-m", "benchmarks.report"], check=True)
