"""Run benchmarks by name, all without one, and put the figures into the README."""

import subprocess
import sys

QUESTIONS = ("mapping", "update", "whole", "age", "overload", "restore", "disk", "memory", "tower")

for question in sys.argv[1:] or QUESTIONS:
    subprocess.run([sys.executable, "-m", f"benchmarks.{question}"], check=True)
subprocess.run([sys.executable, "-m", "benchmarks.report"], check=True)
