"""Exchange: features from other tools, and for them."""
