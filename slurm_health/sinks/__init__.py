"""Where results go: the verdict file of a node."""
