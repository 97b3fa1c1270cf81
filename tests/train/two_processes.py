"""Run by torchrun in ``test_processes.py``: trains every method given, one after the other, in this
process group.
"""

from __future__ import annotations

import sys

import torch

from lowrank.cli.train import train_command


def main() -> None:
    """``two_processes.py STUDY METHOD… [-- OPTION…]``"""
    torch.set_num_threads(1)
    study, *rest = sys.argv[1:]
    cut = rest.index("--") if "--" in rest else len(rest)
    for method in rest[:cut]:
        arguments = [
            "--config",
            study,
            "--method",
            method,
            "--scale",
            "pico",
            "--seed",
            "0",
            *rest[cut + 1 :],
        ]
        train_command.main(arguments, standalone_mode=False)


if __name__ == "__main__":
    main()
