"""Which encoder serves whom, and how that changes."""
