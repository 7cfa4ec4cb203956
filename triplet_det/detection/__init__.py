"""Detection (Sec. 3.1, 3.4): network outputs to pairs, triplets and boxes; a trained detector as a function."""
