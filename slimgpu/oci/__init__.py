"""Images as values: digests, references, manifests, configurations. Nothing here reads or writes anything."""
