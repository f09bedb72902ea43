"""What `fuzz.py` is made of: honest material, mutations of it, and the doors through which it comes in."""
