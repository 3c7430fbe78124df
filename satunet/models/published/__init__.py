"""Published models by name: found on the hub, fetched, checked, and kept in the cache as model folders."""
