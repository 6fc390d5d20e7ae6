"""Benchmarks: one folder a question, every figure a ratio to a limit or a peer measured in the same run."""
