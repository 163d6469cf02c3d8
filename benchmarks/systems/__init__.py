"""One job in four systems: Currents, Quix Streams, stock Faust, a bare confluent-kafka loop. benchmarks/plumbing.py and encoders.py compare them."""
