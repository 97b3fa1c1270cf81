"""Several workers on one study: processes of one machine, or jobs of a Slurm cluster.

Workers are nothing but further calls of ``lowrank study run`` (or of ``lowrank.train``) on the same
store; they share the work by claiming it. A launcher starts them, shows what they say, and does the
last stages itself.
"""
