"""The network (Sec. 3.2, 3.3): hourglasses, the poolings of corners and centers, output branches; PyTorch weights."""
