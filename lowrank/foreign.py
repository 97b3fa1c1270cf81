"""Import Hugging Face LLaMA directories as runs of kind ``imported``.

An imported checkpoint is measured and evaluated like one that lowrank trained. Nothing in the
foreign folder is executed or unpickled: weights are read from safetensors, everything else is JSON,
and only files inside the folder are read.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank import __version__, checkpoint
from lowrank.checkpoint import Manifest
from lowrank.config.loading import validate
from lowrank.errors import CheckpointError, UsageError
from lowrank.hashing import content_hash
from lowrank.store import Store, records

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

INDEX = "model.safetensors.index.json"
OWN, PLAIN = "lowrank_llama", "llama"
IGNORED = re.compile(
    r"\.rotary_emb\.inv_freq$"
)  # buffers that older releases of transformers saved
SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
GROUPED = (
    "num_key_value_heads",
    "head_dim",
)  # of a shape where they differ from what follows from it


@dataclass(frozen=True)
class Origin:
    """How a foreign checkpoint is filed in the study.

    ``name`` distinguishes its run from other runs of the same method and scale; ``step`` counts
    optimizer updates.
    """

    method: str
    scale: str
    seed: int
    name: str
    step: int
    tokens_seen: int = 0
    rank: int | None = None


def import_checkpoint(
    store: Store, study: records.Study, root: Path, source: Path, origin: Origin
) -> records.Checkpoint:
    """Copy the checkpoint ``source`` into the study's folder and store its run and checkpoint rows.

    Importing the same weights again changes nothing. Checkpoints imported under one name at several
    steps belong to one run.

    Returns the stored checkpoint row. Raises :class:`CheckpointError` if ``source`` does not hold a
    LLaMA in safetensors, and :class:`UsageError` if ``origin`` contradicts the architecture.
    """
    from lowrank.methods.base import create

    for name in (origin.name, origin.scale):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise UsageError(
                f"'{name}' cannot be part of a folder's name; use letters, digits, '_', '.' and '-'"
            )
    config = read_config(source)
    settings = _settings(config, source, origin)
    create(origin.method, settings)
    model = read_model(source)
    tokenizer, tokenizer_hash = _tokenizer(source)
    body = {
        "kind": "imported",
        "method": origin.method,
        "scale": origin.scale,
        "seed": origin.seed,
        "variant": origin.name,
    }
    config_hash = content_hash(body)
    label = "-".join((origin.method, origin.name, origin.scale, f"s{origin.seed}", config_hash[:8]))
    folder = root / "runs" / label / "checkpoints" / f"step_{origin.step:08d}"
    manifest = Manifest(
        step=origin.step,
        kind="imported",
        tokens_seen=origin.tokens_seen,
        method=origin.method,
        settings=settings,
        run_config_hash=config_hash,
        tokenizer_hash=tokenizer_hash,
        dtype=str(model.dtype).removeprefix("torch."),
        lowrank_version=__version__,
    )
    weights = {
        name: tensor.clone() for name, tensor in model.state_dict().items()
    }  # tied weights become two tensors
    saved = checkpoint.save(folder, model, manifest, tokenizer, weights)
    _require_same(folder, saved, weights)
    shape = {name: config[name] for name in (*SHAPE, *GROUPED) if config.get(name)}
    row = _run_row(study, origin, body, settings, shape)
    total = sum(parameter.numel() for parameter in model.parameters())
    run = store.add(
        replace(row, config_hash=config_hash, parameters_total=total, tokenizer_hash=tokenizer_hash)
    )
    return store.add(
        records.Checkpoint(
            run_id=run.id or 0,
            step=origin.step,
            kind="imported",
            tokens_seen=origin.tokens_seen,
            path=folder.relative_to(root).as_posix(),
            sha256=saved.weights_sha256,
            bytes=saved.bytes,
        )
    )


def _run_row(
    study: records.Study,
    origin: Origin,
    body: dict[str, Any],
    settings: dict[str, Any],
    shape: dict[str, Any],
) -> records.Run:
    """Return the row of an imported run, without what its weights and tokenizer tell."""
    return records.Run(
        study_id=study.id or 0,
        config_hash="",
        method=origin.method,
        variant=origin.name,
        scale=origin.scale,
        seed=origin.seed,
        data_seed=origin.seed,
        init_seed=origin.seed,
        kind="imported",
        status="done",
        rank=settings.get("rank"),
        config={**body, "settings": settings, "shape": shape},
    )


def read_config(source: Path) -> dict[str, Any]:
    """Return the ``config.json`` of a LLaMA; raise :class:`CheckpointError` for any other model."""
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{source}: no Hugging Face checkpoint (config.json cannot be read: {error})"
        ) from error
    if kind not in (PLAIN, OWN):
        raise CheckpointError(
            f"{source}: a model of type '{kind}'; only LLaMA models (model_type 'llama') can be imported"
        )
    lacking = [name for name in SHAPE if not isinstance(config.get(name), int)]
    if lacking:
        raise CheckpointError(f"{source}: config.json lacks {', '.join(lacking)}")
    found: dict[str, Any] = config
    return found


def _settings(config: dict[str, Any], source: Path, origin: Origin) -> dict[str, Any]:
    """Return the method's settings as ``config`` records them.

    Raises :class:`UsageError` if the method does not have this architecture.
    """
    from lowrank import methods

    method = methods.get(origin.method)
    made_as = config.get("method") if config["model_type"] == OWN else None
    if made_as is None and method.custom_architecture:
        plain = [name for name in methods.names() if not methods.get(name).custom_architecture]
        raise UsageError(
            f"{source}: a plain LLaMA is not a {method.title} model; give --method {' or '.join(plain)}"
        )
    if made_as is not None and made_as != origin.method:
        raise UsageError(
            f"{source}: it was trained by the method '{made_as}', not '{origin.method}'"
        )
    if made_as is not None:
        return dict(config.get("method_settings") or {})
    given = (
        {"rank": origin.rank}
        if "rank" in method.Settings.model_fields and origin.rank is not None
        else {}
    )
    if method.Settings.model_fields.keys() & {"rank"} and not given:
        raise UsageError(
            f"{method.title} has a rank: give the one that trained the checkpoint with --rank"
        )
    return validate(method.Settings, given, str(source), "settings").model_dump(mode="json")


def read_state(source: Path) -> dict[str, Tensor]:
    """Return the tensors of ``model.safetensors``, or of its shards, by name."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = [checkpoint.WEIGHTS]
    try:
        if (source / INDEX).is_file():
            files = sorted(
                set(json.loads((source / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
            )
        state: dict[str, Tensor] = {}
        for name in files:
            if Path(name).name != name:
                raise CheckpointError(
                    f"{source / INDEX}: names '{name}', which is not in its folder"
                )
            state |= load_file(source / name)
    except FileNotFoundError as error:
        pickled = sorted(path.name for path in source.glob("*.bin"))
        hint = (
            f"; {pickled[0]} is pickled, which lowrank does not read: convert it to safetensors"
            if pickled
            else ""
        )
        raise CheckpointError(
            f"{source}: {Path(error.filename or checkpoint.WEIGHTS).name} is missing{hint}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{source}: the weights cannot be read ({error})") from error
    return {name: tensor for name, tensor in state.items() if not IGNORED.search(name)}


def read_model(source: Path) -> PreTrainedModel:
    """Return the model with its weights in their stored precision and the output head untied."""
    from transformers import AutoConfig, AutoModelForCausalLM

    import lowrank.models  # noqa: F401  (registers the architecture)

    state = read_state(source)
    config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    if (
        config.tie_word_embeddings
        and "lm_head.weight" not in state
        and "model.embed_tokens.weight" in state
    ):
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    config.tie_word_embeddings = False
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(f"{source}: the weights do not fit config.json ({first})") from error
    dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    model.config.dtype = dtype
    model.to(dtype).eval()  # type: ignore[arg-type]
    return model


def _tokenizer(source: Path) -> tuple[Any, str]:
    """Return the tokenizer in the folder and its hash, or ``(None, "")`` if there is none."""
    from lowrank.data.tokenizer import canonical_hash

    if not (source / "tokenizer.json").is_file():
        return None, ""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{source}: its tokenizer cannot be read ({str(error).splitlines()[0]})"
        ) from error
    return tokenizer, canonical_hash((source / "tokenizer.json").read_text(encoding="utf-8"))


def _require_same(folder: Path, saved: Manifest, weights: dict[str, Tensor]) -> None:
    """Raise :class:`CheckpointError` if ``folder`` already existed with different weights."""
    import hashlib

    from safetensors.torch import save

    body = save(
        {name: tensor.contiguous() for name, tensor in sorted(weights.items())},
        metadata={"format": "pt"},
    )
    if hashlib.sha256(body).hexdigest() != saved.weights_sha256:
        raise CheckpointError(
            f"{folder}: already holds other weights; give another --name or --step"
        )
