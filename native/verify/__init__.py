"""`python -m native.verify DRIVER`: does this machine's device do what the drivers need, and how fast; one report."""
