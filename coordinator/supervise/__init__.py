"""`vnpu up`: the processes of a node as children that are started in order, kept, announced and stopped in order."""
