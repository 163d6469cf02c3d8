"""The same job in four systems: Currents, Quix Streams, stock Faust, a bare confluent-kafka loop. Compared by benchmarks/plumbing.py, encoders.py."""
