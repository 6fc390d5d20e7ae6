"""`sharded_linear`: what do layers cost that a group of ranks holds once?"""
