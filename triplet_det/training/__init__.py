"""Training (Sec. 3.4): targets, the loss of Eq. (2), Adam with its schedule, the one step, weights to start from."""
