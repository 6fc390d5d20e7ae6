"""What does it cost to ask by the gateway, and what does a request take that waits there?"""
