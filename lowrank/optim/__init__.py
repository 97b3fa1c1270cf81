"""Optimizers with moments in gradient subspaces, projections, decompositions and 8-bit states."""
