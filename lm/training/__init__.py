"""The training step, the loop, and the hooks that do all periodic work."""
