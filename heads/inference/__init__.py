"""Statistical inference: metrics, their bootstrap intervals, and the comparison of runs."""
