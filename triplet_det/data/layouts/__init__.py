"""Readers of the layouts in which label tools write a data set, each to the packed `Annotations`."""
