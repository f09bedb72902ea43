"""Where a store may lie: a folder, a zip file, a bucket, an Icechunk repository."""
