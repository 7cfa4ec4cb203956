"""Metrics: each module has `evaluate(ground_truth, detections) -> dict[str, float]`."""
