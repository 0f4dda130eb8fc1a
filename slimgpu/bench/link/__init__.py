"""Links of a set rate between a registry and its nodes: namespaces that the kernel shapes, or a proxy."""
