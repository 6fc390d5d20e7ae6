"""How fast do weights come from another engine?"""
