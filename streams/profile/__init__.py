"""Windows -> profiles, written and published."""
