"""Validation loss by tokens, the same number whatever the batch size and the number
of processes.
"""

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
    """(mean loss in nats a token, scored tokens) of ``model`` on a fixed set of rows.

    Sums are taken in float64 over batches; a compiled model runs uncompiled here.
    ``validation_average: published`` repeats the study's launcher: the sum of batch means over one
    batch more than there are, n/(n+1) of the mean of batch means.
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
