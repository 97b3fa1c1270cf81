"""Export a checkpoint as a plain Hugging Face LLaMA directory that loads without lowrank.

This needs a dense equivalent, which methods with a non-linearity between their factors lack.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lowrank import checkpoint
from lowrank.checkpoint import Loaded
from lowrank.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import LlamaForCausalLM

KEPT = (checkpoint.MANIFEST, checkpoint.WEIGHTS, "config.json")


def dense_state(loaded: Loaded) -> dict[str, Tensor] | None:
    """Return the weights of the equivalent plain LLaMA by name.

    Returns None if there is no such model, because a non-linearity stands between the factors.
    """
    dense = loaded.method.dense(loaded.model)
    if dense is None:
        return None
    treated = tuple(f"{path}." for path in dense)
    state = {
        name: tensor
        for name, tensor in loaded.model.state_dict().items()
        if not name.startswith(treated)
    }
    dtype = next(iter(state.values())).dtype
    return state | {f"{path}.weight": W.to(dtype) for path, W in dense.items()}


def dense_model(loaded: Loaded) -> LlamaForCausalLM | None:
    """Return the equivalent plain LLaMA in evaluation mode, or None if there is none."""
    from transformers import LlamaConfig, LlamaForCausalLM

    state = dense_state(loaded)
    if state is None:
        return None
    fields = set(LlamaConfig().to_dict())
    values = {
        key: value
        for key, value in loaded.model.config.to_dict().items()
        if key in fields and key not in ("model_type", "architectures")
    }
    model: nn.Module = LlamaForCausalLM(LlamaConfig(**values))
    model.to(next(iter(state.values())).dtype)
    model.load_state_dict(state)
    return cast(LlamaForCausalLM, model.eval())


def export(
    source: Path, target: Path, native: bool = False, expected_sha256: str | None = None
) -> None:
    """Write the checkpoint ``source`` to the new folder ``target`` as a plain LLaMA.

    With ``native`` it is copied in lowrank's own architecture. ``expected_sha256`` is the hash of
    the weights that the database holds. Raises :class:`UsageError` if ``target`` exists, and
    :class:`CheckpointError` if ``source`` is damaged or has no dense equivalent.
    """
    if target.exists():
        raise UsageError(f"{target}: exists already; name a folder that does not")
    if native:
        checkpoint.verify(source, expected_sha256)
        checkpoint.write_folder(target, lambda folder: _copy(source, folder, exclude=()))
        return
    loaded = checkpoint.load(source, expected_sha256)
    model = dense_model(loaded)
    if model is None:
        raise CheckpointError(
            f"{source}: a {loaded.method.title} model has no dense equivalent; --native writes it in lowrank's own architecture"
        )

    def fill(folder: Path) -> None:
        checkpoint.write_weights(folder / checkpoint.WEIGHTS, model.state_dict())
        model.config.save_pretrained(folder)
        _copy(source, folder, exclude=KEPT)

    checkpoint.write_folder(target, fill)


def _copy(source: Path, target: Path, exclude: tuple[str, ...]) -> None:
    for path in source.iterdir():
        if path.is_file() and path.name not in exclude:
            shutil.copyfile(path, target / path.name)
