"""The network: stem, hourglass stacks, pooling modules and output branches (Sec. 3.2-3.3)."""
