"""Samples in, a better model out. Knows nothing of Kafka."""
