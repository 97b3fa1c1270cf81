"""``python -m lowrank`` is ``lowrank``."""

from lowrank.cli.main import main

main()
