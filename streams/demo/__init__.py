"""The synthetic world and the demo. Only the command line imports this package."""
