"""Reading rows: from mapped shards, from fetched shards, or by byte ranges."""
