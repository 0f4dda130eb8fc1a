"""ELF files: what the loader reads in them, and which of them need each other."""
