"""Which resident leaves when memory is needed: replaceable choices, one file each.

`core.policy` says what a policy is told and what it answers, `registry` names those there are.
"""
