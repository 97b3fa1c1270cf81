"""Validation loss as a mean over tokens, independent of batch size and number of processes."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from lowrank.config import Training
from lowrank.data import EvaluationSet
from lowrank.loss import summed_nats


@torch.no_grad()
def validation_loss(
    model: nn.Module, rows: EvaluationSet, training: Training, accelerator: Accelerator
) -> tuple[float, int]:
    """Return (mean loss in nats per token, scored tokens) of ``model`` on a fixed set of rows.

    Sums over batches are taken in float64; a compiled model runs uncompiled here. With
    ``validation_average: published`` the loss is that of the study's launcher: the sum of batch
    means divided by one more than their number, n/(n+1) of the mean of batch means.
    """
    was_training = model.training
    model.eval()
    # Columns: nats, tokens, batch means, batches.
    sums = torch.zeros(4, dtype=torch.float64)
    try:
        for index, batch in enumerate(rows.batches(training.evaluation_batch_size)):
            if index % accelerator.num_processes != accelerator.process_index:
                continue
            input_ids, labels = (
                batch.input_ids.to(accelerator.device),
                batch.labels.to(accelerator.device),
            )
            with torch.compiler.set_stance(
                "force_eager"
            ):  # compiling twice would cost more than it saves
                logits = model(input_ids=input_ids).logits
            nats, tokens = float(summed_nats(logits, labels)), batch.scored
            sums += torch.tensor(
                [nats, tokens, nats / tokens if tokens else 0.0, 1.0], dtype=torch.float64
            )
    finally:
        model.train(was_training)
    nats, tokens, means, batches = accelerator.reduce(sums.to(accelerator.device), "sum").tolist()
    loss = nats / tokens if training.validation_average == "tokens" else means / (batches + 1)
    return loss, int(tokens)
