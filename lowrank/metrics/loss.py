"""Loss of a checkpoint on a held-out split, with its error bar.

Training stores the loss on the validation split. This lens measures it on any held-out split, so
that a recipe can be chosen on rows that no report shows (``split: selection``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from lowrank.geometry.probe import row_losses, standard_error
from lowrank.metrics.base import (
    Checkpoints,
    Comparison,
    Context,
    Lens,
    MetricInfo,
    Result,
    TextSettings,
    Value,
    selection,
)


class LossSettings(TextSettings):
    """Settings that select the rows and the checkpoints."""

    split: Literal["validation", "selection"] = "selection"
    final_only: bool = selection(True)


class Loss(Lens):
    """Mean negative log-likelihood of the next token on a held-out split."""

    title = "Held-out loss"
    metrics = (
        MetricInfo(
            "held_out_loss",
            "mean next-token negative log-likelihood on the split that the protocol names, over all scored tokens",
            "nats/token",
            "[0, ∞)",
            "metrics of the study: L(θ)",
            "lower",
            role="loss",
        ),
    )
    Settings = LossSettings
    position = 6

    def units(self, checkpoints: Checkpoints, settings: LossSettings) -> list[Comparison]:
        """Return the last checkpoint of every run, or every checkpoint."""
        return [
            Comparison(checkpoint)
            for run in checkpoints.runs()
            for checkpoint in run
            if checkpoint.last or not settings.final_only
        ]

    def compute(
        self, unit: Comparison, context: Context, settings: LossSettings
    ) -> Iterable[Result]:
        """Yield the loss in nats per token, with its standard error over rows."""
        network = context.network(unit.checkpoint, "trained")
        assert network is not None  # every method has the network that it trained
        losses = row_losses(network, context.batches(unit, settings.batch_rows))
        mean = losses.mean()
        error = standard_error(losses.nats, losses.tokens)
        yield Value("held_out_loss", mean, standard_error=error, n=int(losses.tokens.sum()))


LENS = Loss
