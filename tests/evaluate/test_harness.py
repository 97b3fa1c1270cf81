"""Scores of shared, tokenised requests against the harness's own Hugging Face model."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lowrank.data.tokenizer import _train as train_tokenizer
from lowrank.evaluate import harness
from lowrank.evaluate.errors import EvaluationError

CONTEXT = 24


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["the cat sat on a mat and the dog ran to an old red house"] * 20, 300)


def model(seed: int, rows: int = 300) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=rows,
            hidden_size=16,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT,
            initializer_range=0.3,
        )
    )


def requests(count: int = 24) -> list[Any]:
    """Return contexts of all lengths, empty and longer than the model's, with answers of one or
    more tokens.
    """
    draw = random.Random(0)
    words = [
        "the",
        "cat",
        "sat",
        "on",
        "a",
        "mat",
        "and",
        "dog",
        "ran",
        "to",
        "an",
        "old",
        "red",
        "house",
    ]
    made = []
    for i in range(count):
        context = " ".join(draw.choices(words, k=(i * 3) % 40))
        answers = (" cat", " dog", " " + " ".join(draw.choices(words, k=1 + i % 5)))
        made += [SimpleNamespace(args=(context, answer)) for answer in answers]
    return made


def reference(
    network: LlamaForCausalLM, tokenizer: Any, asked: list[Any], rows: int
) -> list[tuple[float, bool]]:
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(
        pretrained=network,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=rows,
        max_length=CONTEXT,
        logits_cache=False,
        prefix_token_id=tokenizer.eos_token_id,
    )
    return lm.loglikelihood(asked, disable_tqdm=True)


@pytest.mark.parametrize("rows", [3, 16])
def test_log_likelihoods_are_those_of_the_harness(tokenizer: Any, rows: int) -> None:
    network, asked = model(0).eval(), requests()
    with torch.no_grad():
        network.lm_head.weight[tokenizer(" cat").input_ids[-1]] *= 20.0  # often the likeliest token
    lm = harness.language_model(network, tokenizer, rows, CONTEXT)
    expected, found = reference(network, tokenizer, asked, rows), lm.loglikelihood(asked)
    assert [ll for ll, _ in found] == pytest.approx([ll for ll, _ in expected], abs=2e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert 0 < sum(greedy for _, greedy in expected) < len(expected)
    assert lm.truncated > 0
    assert lm.loglikelihood(asked) == found


def test_the_next_model_gets_its_own_scores_from_the_same_tokens(tokenizer: Any) -> None:
    first, second, asked = model(0).eval(), model(1).eval(), requests()
    lm = harness.language_model(first, tokenizer, 8, CONTEXT)
    of_first = lm.loglikelihood(asked)
    lm.use(second)
    expected = [ll for ll, _ in reference(second, tokenizer, asked, 8)]
    assert [ll for ll, _ in lm.loglikelihood(asked)] == pytest.approx(expected, abs=2e-4)
    lm.use(first)
    assert lm.loglikelihood(asked) == of_first
    with torch.no_grad():
        first.lm_head.weight.mul_(2.0)  # the same object with other weights
    changed = [ll for ll, _ in reference(first, tokenizer, asked, 8)]
    assert [ll for ll, _ in lm.loglikelihood(asked)] == pytest.approx(changed, abs=2e-4)


def test_requests_that_differ_in_their_last_token_share_a_row(tokenizer: Any) -> None:
    asked = [(("", ""), [5, 6, 7], [8]), (("", ""), [5, 6, 7], [9]), (("", ""), [5, 6], [7, 8])]
    prepared = harness.TokenisedRequests.of(asked, 8, CONTEXT, torch.device("cpu"))
    assert [tuple(batch.input_ids.shape) for batch in prepared.batches] == [(1, 3)]
    network = model(0).eval()
    logits = network(torch.tensor([[5, 6, 7]])).logits[0].log_softmax(-1).detach()
    expected = [logits[2, 8], logits[2, 9], logits[1, 7] + logits[2, 8]]
    assert [ll for ll, _ in harness.score(network, prepared)] == pytest.approx(
        [float(v) for v in expected], abs=1e-5
    )


def test_an_answer_longer_than_the_context_is_refused() -> None:
    with pytest.raises(
        EvaluationError, match="an answer of 25 tokens is longer than the model's context of 24"
    ):
        harness.TokenisedRequests.of([(("", ""), [1], [2] * 25)], 4, CONTEXT, torch.device("cpu"))


def test_modes_come_back_as_they_were() -> None:
    network = model(0).train()
    network.lm_head.eval()
    with harness.evaluating(network):
        assert not any(module.training for module in network.modules())
    assert network.training
    assert network.model.layers[0].training
    assert not network.lm_head.training
