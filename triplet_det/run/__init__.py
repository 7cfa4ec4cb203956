"""What a run leaves on disk and shows on the screen: checkpoints, metrics, progress, and what its settings can be."""
