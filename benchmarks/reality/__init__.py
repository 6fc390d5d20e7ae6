"""Does the simulator tell what real engines do?"""
