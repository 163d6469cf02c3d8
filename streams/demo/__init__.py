"""The synthetic world and the demo; only the command line imports it."""
