"""Metrics (Sec. 4): each module has `evaluate(ground_truth, detections) -> dict[str, float]`, or says which images."""
