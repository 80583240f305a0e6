"""Other ways to control, or not to, on the same frozen backbone, what they cost, and weights of other
methods.
"""
