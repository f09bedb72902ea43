"""Training: features in, models that have learnt out."""
