"""Inference: metrics, their intervals, and which differences are real."""
