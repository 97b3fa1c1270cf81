"""Figures as scenes of shapes: axes, charts, themes, SVG, PNG."""
