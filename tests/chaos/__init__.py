"""The chaos suite: a real cluster on one machine, faults from a seeded schedule, and a check of everything afterwards (`docs/chaos.md`)."""
