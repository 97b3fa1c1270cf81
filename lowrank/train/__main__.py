"""``accelerate launch -m lowrank.train``: train one run of a study file."""

from lowrank.cli.train import main

if __name__ == "__main__":
    main()
