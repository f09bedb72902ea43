"""What `gpu.py` is made of: the bench that its steps share, and the steps, by what they look at."""
