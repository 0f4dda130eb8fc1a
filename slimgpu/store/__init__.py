"""Where images live: registries, layouts, archives, the Docker engine, and the local cache."""
