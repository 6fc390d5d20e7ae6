"""Bytes between engines: weight streaming and KV pulling, on side threads next to the model runner."""
