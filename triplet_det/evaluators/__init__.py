"""Metrics (Sec. 4): `coco_ap` and `false_discovery` have `evaluate(ground_truth, detections) -> dict[str, float]`.

`error_analysis` has `analyse`, since its detections are made with ground truth in the network; `best_and_worst` draws.
"""
