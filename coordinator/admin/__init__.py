"""The operators' API, on its own port: what is, what was decided and why, and what to do."""
