"""Prediction over many files: shards, parts on disk that a killed run continues from, and their merging."""
