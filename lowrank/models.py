"""LLaMA models of any method as Hugging Face classes, initialised by named generators from a seed.

Importing this module registers ``lowrank_llama``, so that ``AutoModelForCausalLM.from_pretrained``
loads every checkpoint. Methods of the optimizer family have plain ``llama`` checkpoints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedModel,
)
from transformers.models.llama.modeling_llama import LlamaPreTrainedModel

from lowrank.config.resolve import RunConfig
from lowrank.config.schema import ModelShape
from lowrank.layers import Draw
from lowrank.methods.base import Method, create
from lowrank.seeds import generator
from lowrank.settings import Training


class LowRankLlamaConfig(LlamaConfig):
    """A LLaMA configuration that records the method and its settings."""

    model_type = "lowrank_llama"
    method: str = ""
    method_settings: dict[str, Any] | None = None


class _Initialisation:
    """A mix-in that draws parameters missing from a checkpoint with the module's
    ``reset_parameters``.
    """

    def _init_weights(self, module: nn.Module) -> None:
        if reset := own_reset(module):
            reset()
        else:
            super()._init_weights(module)  # type: ignore[misc]


class LowRankLlamaModel(_Initialisation, LlamaModel):
    """A LLaMA body whose target layers are replaced by those of a method."""

    config_class = LowRankLlamaConfig

    def __init__(self, config: LowRankLlamaConfig) -> None:
        super().__init__(config)
        create(config.method, config.method_settings or {}).attach(self)
        self.post_init()


class LowRankLlamaForCausalLM(_Initialisation, LlamaForCausalLM):
    """A causal language model with a :class:`LowRankLlamaModel` as its body."""

    config_class = LowRankLlamaConfig

    def __init__(self, config: LowRankLlamaConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)  # LlamaForCausalLM would build the plain body
        self.model = LowRankLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


AutoConfig.register("lowrank_llama", LowRankLlamaConfig)
AutoModelForCausalLM.register(LowRankLlamaConfig, LowRankLlamaForCausalLM)


def own_reset(module: nn.Module) -> Callable[..., None] | None:
    """Return ``reset_parameters(draw=None)`` of a module that draws its own parameters.

    Returns None for any other module.
    """
    return (
        getattr(module, "reset_parameters", None)
        if getattr(module, "draws_own_parameters", False)
        else None
    )


def named_draws(seed: int) -> Draw:
    """Return a function from a parameter's name to a generator keyed by (``seed``, name).

    Parameters that two models share by name therefore start with equal values, whatever else the
    models contain.
    """

    return lambda name: generator(f"{seed}/{name}")


def llama_config(
    shape: ModelShape, vocabulary_size: int, max_length: int, special: dict[str, int | None]
) -> dict[str, Any]:
    """Return the keyword arguments of a LLaMA configuration with an untied output head.

    ``special`` maps ``bos_token_id``, ``eos_token_id`` and ``pad_token_id`` to token ids.
    """
    return {
        "vocab_size": vocabulary_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_attention_heads,
        "max_position_embeddings": max_length,
        "rms_norm_eps": shape.rms_norm_eps,
        "initializer_range": shape.initializer_range,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": False,
        "use_cache": False,
        **special,
    }


def build(
    config: RunConfig, vocabulary_size: int, special: dict[str, int | None]
) -> tuple[PreTrainedModel, Method]:
    """Return the model of a run at step 0, in float32 on the CPU, and its method."""
    model, method = construct(config, vocabulary_size, special)
    initialise(model, named_draws(config.init_seed), config.shape.initializer_range)
    return model, method


def construct(
    config: RunConfig, vocabulary_size: int, special: dict[str, int | None]
) -> tuple[PreTrainedModel, Method]:
    """Return the model of a run before its weights are drawn, and its method.

    Call this under the meta device for the shapes alone.
    """
    method = create(config.method, config.settings)
    arguments = llama_config(config.shape, vocabulary_size, config.data.max_length, special)
    model: PreTrainedModel
    with torch.random.fork_rng(
        devices=[]
    ):  # constructors draw from the global generator; every value is drawn again below
        if method.custom_architecture:
            model = LowRankLlamaForCausalLM(
                LowRankLlamaConfig(
                    method=config.method, method_settings=config.settings, **arguments
                )
            )
        else:
            model = LlamaForCausalLM(LlamaConfig(**arguments))
    return model, method


def prepare(model: PreTrainedModel, training: Training) -> None:
    """Apply the precision and the gradient checkpointing of ``training`` to ``model``, in place."""
    if training.precision == "pure_bfloat16":
        model.bfloat16()
    if training.gradient_checkpointing:
        # the second name, of the first versions of transformers 5, goes in version 6
        enable: Any = (
            getattr(model, "activation_checkpointing_enable", None)
            or model.gradient_checkpointing_enable
        )
        enable({"use_reentrant": False})


@torch.no_grad()
def initialise(model: nn.Module, draw: Draw, std: float) -> None:
    """Draw every parameter from the generator of its own name.

    Matrices are drawn from N(0, ``std``²), norm gains are 1 and biases 0; modules of a method draw
    their own parameters.
    """
    for path, module in model.named_modules():
        if reset := own_reset(module):
            reset(lambda name, path=path: draw(f"{path}.{name}"))
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() >= 2:
                parameter.copy_(normal(parameter.shape, std, draw(f"{path}.{name}")))
            else:
                nn.init.constant_(parameter, 0.0 if name == "bias" else 1.0)


def normal(shape: torch.Size, std: float, generator: torch.Generator) -> Tensor:
    """Return entries of N(0, ``std``²) in ``shape``, in float32 on the CPU."""
    return torch.empty(shape, dtype=torch.float32).normal_(0.0, std, generator=generator)


@torch.no_grad()
def init_hash(model: nn.Module, method: Method) -> str:
    """Return the SHA-256 of the effective weights: dense target layers and every other parameter.

    Two runs share their initialisation exactly when these hashes agree at step 0. Target layers
    without a dense equivalent enter as their own parameters.
    """
    dense = method.dense(model)
    digest = hashlib.sha256()
    weights = {f"{path}.weight": W for path, W in (dense or {}).items()}
    treated = tuple(f"{path}." for path in (dense or {}))
    weights |= {
        name: p.detach()
        for name, p in model.named_parameters()
        if not (treated and name.startswith(treated))
    }
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
