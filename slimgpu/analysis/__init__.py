"""Where the bytes of an image are, and what could go: facts, rules over them, and their findings."""
