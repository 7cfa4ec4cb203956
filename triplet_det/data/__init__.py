"""Data, free of JAX: sources and label layouts, augmentation on the host, batches, and the doctor who examines them."""
