"""`wake`: what does a request to a sleeping model pay?"""
