"""Shared-weight linear layers: what every rank of a group would hold alike is held once by the group."""
