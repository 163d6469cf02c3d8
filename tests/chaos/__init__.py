"""The chaos suite: runs a real cluster on one machine, injects faults from a seeded schedule, and checks all results (`docs/chaos.md`)."""
