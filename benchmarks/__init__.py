"""Latency, throughput and accuracy measurements."""
