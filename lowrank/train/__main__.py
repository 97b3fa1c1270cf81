"""``accelerate launch -m lowrank.train``: one run of a study file, in this process or as one of
several.
"""

from lowrank.cli.train import main

if __name__ == "__main__":
    main()
