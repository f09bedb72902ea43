"""Labels: from tables of ratings or classes to the numbers that a head learns."""
