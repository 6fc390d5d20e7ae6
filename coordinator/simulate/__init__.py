"""A fleet in virtual time around the real scheduler: `vnpu simulate` and `benchmarks/policy`."""
