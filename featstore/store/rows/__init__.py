"""Reading rows: from mapped shards, from fetched shards, or through a library."""
