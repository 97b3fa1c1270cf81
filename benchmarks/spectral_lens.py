"""Time and accuracy of the spectral lens against torch.linalg.svdvals in float32, matrix by matrix,
on a model's shapes.

    python benchmarks/spectral_lens.py [--scale 130m] [--layers 2] [--rounds 3] [--threads 1]

The two are interleaved in one process, a block's seven matrices each; the figure is the ratio of
their summed times, median over rounds. Errors are relative to float64 singular values, the worst
over matrices. The matrices have a decaying spectrum on top of noise, as trained weights do. The
last line shows a product of two factors, taken without forming it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lowrank.config import ModelShape
from lowrank.geometry.spectrum import (
    SHAPES,
    product_singular_values,
    singular_value_metrics,
    singular_values,
)
from lowrank.metrics.spectra import all_singular_values
from lowrank.presets import load


def weights(shape: ModelShape, layer: int) -> list[Tensor]:
    """The seven matrices of a block."""
    generator = torch.Generator().manual_seed(layer)
    hidden, wide = shape.hidden_size, shape.intermediate_size
    made = []
    for out, into in [(hidden, hidden)] * 4 + [(wide, hidden)] * 2 + [(hidden, wide)]:
        signal = (
            torch.randn(out, 64, generator=generator)
            * torch.logspace(0, -2, 64)
            @ torch.randn(64, into, generator=generator)
        )
        made.append(
            0.02 * torch.randn(out, into, generator=generator) + signal / (out * into) ** 0.25
        )
    return made


def by_svdvals(matrices: list[Tensor]) -> list[Tensor]:
    """The plain way."""
    return [torch.linalg.svdvals(W) for W in matrices]


def by_lens(matrices: list[Tensor]) -> list[Tensor]:
    """The lens's way."""
    return list(all_singular_values({(0, str(i), ""): W for i, W in enumerate(matrices)}).values())


def timed(
    function: Callable[[list[Tensor]], list[Tensor]], matrices: list[Tensor]
) -> tuple[float, list[dict[str, float]]]:
    """Seconds and the four metrics of each matrix."""
    start = time.perf_counter()
    found = [singular_value_metrics(s) for s in function(matrices)]
    return time.perf_counter() - start, found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", default="130m")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = ModelShape.model_validate(load("scales")[options.scale])
    blocks = [weights(shape, layer) for layer in range(options.layers)]
    exact = [
        [singular_value_metrics(torch.linalg.svdvals(W.double())) for W in block]
        for block in blocks
    ]
    ratios, errors = [], {"svdvals": dict.fromkeys(SHAPES, 0.0), "lens": dict.fromkeys(SHAPES, 0.0)}
    for _ in range(options.rounds):
        spent = {"svdvals": 0.0, "lens": 0.0}
        for block, truths in zip(blocks, exact, strict=True):
            for name, function in (("svdvals", by_svdvals), ("lens", by_lens)):
                seconds, found = timed(function, block)
                spent[name] += seconds
                for one, truth in zip(found, truths, strict=True):
                    for metric, value in one.items():
                        errors[name][metric] = max(
                            errors[name][metric], abs(value - truth[metric]) / truth[metric]
                        )
        ratios.append(spent["svdvals"] / spent["lens"])
    print(f"{options.scale}, {options.layers} blocks, {options.threads} thread(s)")
    print(
        f"speed against svdvals float32: {statistics.median(ratios):.2f} (rounds {', '.join(f'{r:.2f}' for r in ratios)})"
    )
    for name, worst in errors.items():
        print(
            f"worst relative error, {name}: "
            + ", ".join(f"{metric} {error:.1e}" for metric, error in worst.items())
        )
    B, A = (
        torch.randn(shape.intermediate_size, shape.rank),
        torch.randn(shape.rank, shape.hidden_size),
    )
    start = time.perf_counter()
    product_singular_values(B, A)
    middle = time.perf_counter()
    singular_values(B @ A)
    ratio = (time.perf_counter() - middle) / (middle - start)
    print(
        f"product of factors of rank {shape.rank}: {ratio:.2f} times faster than as a dense matrix"
    )


if __name__ == "__main__":
    main()
