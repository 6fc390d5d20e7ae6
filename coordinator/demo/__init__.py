"""`vnpu demo`: three real vLLM engines take turns on a device that cannot hold them together, and the proof of it."""
