"""Exchange: `importing` takes in features from other tools, `exporting` writes features for them."""
