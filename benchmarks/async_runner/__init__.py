"""`async_runner`: what do asynchronous steps give on a host without accelerator?"""
