"""Data: sources, host-side augmentation and the input pipeline (free of JAX)."""
