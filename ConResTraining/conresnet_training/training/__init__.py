"""The training itself: losses, networks with their losses, the loop, validation, processes."""
