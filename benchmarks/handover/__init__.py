"""How long is the way from a request, or a death, to the next restore order?"""
