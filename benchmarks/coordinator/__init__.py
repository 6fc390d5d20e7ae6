"""What does the coordinator cost, in time, writes and memory, as the fleet grows?"""
