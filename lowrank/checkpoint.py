"""Checkpoints on disk: a Hugging Face directory with a manifest, written atomically.

A folder holds ``config.json``, ``model.safetensors``, the tokenizer and ``manifest.json`` with the
size and SHA-256 of every file. It is written under a temporary name, flushed to the disk and
renamed: a folder with its final name is complete.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.errors import CheckpointError, DiskError
from lowrank.files import SEAL as SEAL
from lowrank.files import atomic_folder
from lowrank.files import file_entry as file_entry
from lowrank.files import forget_unfinished as forget_unfinished
from lowrank.files import sealed as sealed
from lowrank.files import sync as sync
from lowrank.files import unsealed as unsealed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from lowrank.methods.base import Method

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
PRUNED = "pruned.json"  # next to the manifest if the weights were deleted on purpose
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Description of a checkpoint, for people and for restoring a lost row of the store.

    ``step`` counts optimizer updates.
    """

    step: int
    kind: str  # initial | training | final | imported
    tokens_seen: int
    method: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    run_config_hash: str = ""
    validation_loss: float | None = (
        None  # nats per token; JSON holds "nan" or "inf" if it is not finite
    )
    validation_tokens: int = 0
    evaluation_set_sha256: str = ""
    tokenizer_hash: str = ""
    dtype: str = "float32"
    lowrank_version: str = ""
    files: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # name -> {"sha256": …, "bytes": …}
    format: int = FORMAT

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file."""
        return str(self.files[WEIGHTS]["sha256"])

    @property
    def bytes(self) -> int:
        """Size of all files except the manifest, in bytes."""
        return sum(int(entry["bytes"]) for entry in self.files.values())


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory."""

    model: PreTrainedModel
    method: Method
    manifest: Manifest


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make ``folder`` with what ``fill`` writes into it: complete under its name, or absent.

    Raises :class:`DiskError` where the disk refuses, or where ``folder`` holds anything already.
    """
    try:
        with atomic_folder(folder) as temporary:
            fill(temporary)
    except OSError as error:
        fix = "free the disk or fix the permissions, then call the same command again"
        raise DiskError(
            f"{folder}: cannot be written ({error.strerror or error}); {fix}"
        ) from error


def save(
    folder: Path,
    model: PreTrainedModel,
    manifest: Manifest,
    tokenizer: Any = None,
    state: dict[str, torch.Tensor] | None = None,
) -> Manifest:
    """Write ``model``, or its gathered ``state``, as a checkpoint; return the complete manifest.

    A complete folder is kept, and its manifest is returned. Raises :class:`CheckpointError` if the
    disk cannot be written or the manifest of an existing folder is damaged.
    """
    complete = manifest

    def fill(temporary: Path) -> None:
        nonlocal complete
        write_weights(temporary / WEIGHTS, model.state_dict() if state is None else state)
        model.config.save_pretrained(temporary)
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        entries = {path.name: file_entry(path) for path in sorted(temporary.iterdir())}
        complete = Manifest(**{**asdict(manifest), "files": entries})
        (temporary / MANIFEST).write_text(dumps(complete), encoding="utf-8")

    if folder.exists():
        return read_manifest(folder)
    write_folder(folder, fill)
    return complete


def write_weights(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Write ``state`` as a safetensors file without copying it in memory.

    The same tensors yield the same bytes. Raises OSError if the disk cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {
        name: tensor.detach().to("cpu").contiguous() for name, tensor in sorted(state.items())
    }
    path.touch()
    mode = (
        path.stat().st_mode
    )  # as the user's umask sets it; safetensors makes files that only the user can read
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)


def dumps(manifest: Manifest) -> str:
    """Return the manifest as strict JSON."""
    body = asdict(manifest)
    loss = manifest.validation_loss
    body["validation_loss"] = loss if loss is None or math.isfinite(loss) else str(loss)
    return sealed(body)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint folder.

    Raises :class:`CheckpointError` if it is missing, damaged or of a newer format.
    """
    path = folder / MANIFEST
    try:
        body = unsealed(path.read_text(encoding="utf-8"))
        if body.get("validation_loss") is not None:
            body["validation_loss"] = float(body["validation_loss"])
        manifest = Manifest(**body)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: not a checkpoint (no {MANIFEST})") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: damaged manifest ({error}); delete the folder and train again from its last resume point"
        ) from error
    if manifest.format > FORMAT:
        raise CheckpointError(
            f"{folder}: written by a newer lowrank (format {manifest.format}); upgrade lowrank"
        )
    return manifest


def verify(folder: Path, expected_sha256: str | None = None) -> Manifest:
    """Compare every file with the manifest, and the weights with ``expected_sha256`` if given.

    Returns the manifest; raises :class:`CheckpointError` for the first file that differs.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest.files.items():
        path = folder / Path(name).name  # a manifest never leads outside its folder
        if not path.is_file() and name == WEIGHTS and (folder / PRUNED).exists():
            raise CheckpointError(
                f"{folder}: its weights were deleted by the study's section 'keep'; restore them from a copy"
            )
        if not path.is_file():
            raise CheckpointError(
                f"{path}: missing; restore it, or delete the run's row and train again"
            )
        if file_entry(path) != {"sha256": entry["sha256"], "bytes": entry["bytes"]}:
            raise CheckpointError(
                f"{path}: does not match its manifest (SHA-256 differs): the file is damaged; restore it from a copy or train again"
            )
    if expected_sha256 is not None and manifest.weights_sha256 != expected_sha256:
        raise CheckpointError(
            f"{folder}: holds other weights than the database says (SHA-256 differs); restore the folder"
        )
    return manifest


def load(
    folder: Path, expected_sha256: str | None = None, dtype: torch.dtype | None = None
) -> Loaded:
    """Load a checkpoint after verifying it.

    The model is in evaluation mode on the CPU, in its stored precision unless ``dtype`` is given.
    Raises :class:`CheckpointError` if the checkpoint is missing or damaged.
    """
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    import lowrank.models  # noqa: F401  (registers the architecture)
    from lowrank.methods.base import create

    manifest = verify(folder, expected_sha256)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_config(config)
    state = load_file(folder / WEIGHTS)
    model.load_state_dict(state)  # strict: a missing or unknown key is an error
    stored = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    model.to(dtype or stored).eval()
    return Loaded(model, create(manifest.method, manifest.settings), manifest)
