"""Truth about intent: a small key-value interface with etcd's semantics, on real etcd or in memory."""
