"""Draw figures as scenes of shapes: axes, charts and themes, rendered as SVG and PNG."""
