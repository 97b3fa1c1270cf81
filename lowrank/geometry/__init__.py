"""The numerics of the metrics: spectra, Hessian, directions, offsets, alignment and losses."""
