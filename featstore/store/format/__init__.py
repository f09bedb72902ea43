"""The store as files: the layout of tensors, the Zarr documents, shards, checksums."""
