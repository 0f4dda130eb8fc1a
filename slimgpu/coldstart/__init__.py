"""Starting early: weights on their way before a program asks for them, from this machine's neighbours, too."""
