"""The pure core: every decision as a function of events and time. No asyncio, clock, randomness, os or logging."""
