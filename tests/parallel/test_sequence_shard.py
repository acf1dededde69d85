"""How rows are cut, how held-out batches are shared out and averaged, and which models are refused; on one process."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from pipeline.errors import PipelineError
from pipeline.kind.compute import ComputeSettings
from pipeline.labels import IGNORE
from pipeline.parallel.dims import ParallelDims
from pipeline.parallel.ranks import Ranks
from pipeline.parallel.sequence.attention import SequenceShard, by_document
from pipeline.parallel.sequence.checks import field_problems, sequence_parallel_problems
from pipeline.parallel.sequence.trainer import held_out_batches, mean_by_rows
from pipeline.recipe.schema import Compute
from pipeline.training.sequence_parallel import refuse_sequence_parallel


def test_labels_are_shifted_before_they_are_cut() -> None:
    # 5 tokens in 2 shards are padded to 6: tokens 10 11 12 | 13 14 PAD; what follows each: 11 12 13 | 14 - -
    batch = {"input_ids": torch.tensor([[10, 11, 12, 13, 14]]), "labels": torch.tensor([[IGNORE, 11, 12, 13, 14]])}
    first, second = (SequenceShard(i, 2).batch(batch, pad_id=0) for i in (0, 1))
    assert first["input_ids"].tolist() == [[10, 11, 12]]
    assert second["input_ids"].tolist() == [[13, 14, 0]]
    assert first["shift_labels"].tolist() == [[11, 12, 13]]  # the last one is the other shard's first token
    assert second["shift_labels"].tolist() == [[14, IGNORE, IGNORE]]
    assert [first["position_ids"].tolist(), second["position_ids"].tolist()] == [[[0, 1, 2]], [[3, 4, 5]]]
    assert "attention_mask" not in first


@given(rows=st.integers(1, 4), tokens=st.integers(1, 40), count=st.integers(1, 8), masked=st.integers(0, 40))
def test_shards_together_are_the_row_and_count_each_label_once(rows: int, tokens: int, count: int, masked: int) -> None:
    ids = torch.arange(1, rows * tokens + 1).reshape(rows, tokens)
    labels = ids.clone()
    labels[:, :masked] = IGNORE
    parts = [SequenceShard(i, count).batch({"input_ids": ids, "labels": labels}, pad_id=0) for i in range(count)]
    whole = torch.cat([part["input_ids"] for part in parts], dim=1)
    assert whole.shape[1] % count == 0 and whole.shape[1] < tokens + count
    assert torch.equal(whole[:, :tokens], ids) and not whole[:, tokens:].any()
    follows = torch.cat([part["shift_labels"] for part in parts], dim=1)
    assert torch.equal(follows[:, : tokens - 1], labels[:, 1:])
    assert (follows != IGNORE).sum() == (labels[:, 1:] != IGNORE).sum()


def test_places_of_packed_rows_are_kept_and_padding_is_a_document_of_its_own() -> None:
    batch = {"input_ids": torch.tensor([[5, 6, 7, 8, 9]]), "labels": torch.tensor([[IGNORE, 6, 7, IGNORE, 9]])}
    batch["position_ids"] = torch.tensor([[0, 1, 2, 0, 1]])
    first, second = (SequenceShard(i, 2).batch(batch, pad_id=0) for i in (0, 1))
    assert [first["position_ids"].tolist(), second["position_ids"].tolist()] == [[[0, 1, 2]], [[0, 1, 0]]]


def test_documents_of_packed_rows_attend_to_themselves_only() -> None:
    """Against softmax over a block-diagonal causal mask, written out; rows are divided in different places."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 7, 8, dtype=torch.float64)
    places = torch.tensor([[0, 1, 2, 0, 1, 2, 3], [0, 0, 1, 2, 3, 4, 0]])
    documents = (places == 0).cumsum(1)
    seen = (documents[:, :, None] == documents[:, None, :]) & torch.ones(7, 7).tril().bool()
    scores = (query @ key.transpose(2, 3) * 8**-0.5).masked_fill(~seen[:, None], -torch.inf)
    wanted = (scores.softmax(-1) @ value).transpose(1, 2)
    module: Any = torch.nn.Module()
    output, _ = by_document(sdpa_attention_forward)(module, query, key, value, None, position_ids=places)
    torch.testing.assert_close(output, wanted, rtol=1e-10, atol=1e-10)


def test_neighbours_are_a_group() -> None:
    shards = [SequenceShard.of(Ranks(i, 6), 3) for i in range(6)]
    assert [(one.group, one.index) for one in shards] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert {one.groups for one in shards} == {2}


@given(rows=st.integers(1, 50), size=st.integers(1, 8), groups=st.integers(1, 4))
def test_every_held_out_row_counts_once_and_groups_work_as_long(rows: int, size: int, groups: int) -> None:
    shards = [list(held_out_batches(rows, size, SequenceShard(0, 2, group, groups))) for group in range(groups)]
    assert len({len(batches) for batches in shards}) == 1
    counted = [row for batches in shards for _, batch, weight in batches for row in batch[:weight]]
    assert sorted(counted) == list(range(rows))


def test_the_mean_of_batches_is_by_their_rows() -> None:
    # Batch 0: 2 rows in shards with sums 6 and 0 over 3 and 0 tokens: 2.0. Batch 1: 1 row, 8 / 2 tokens: 4.0.
    # Batch 2 counts for no row. Mean: (2 * 2.0 + 1 * 4.0) / 3.
    parts = [(0, 2, 6.0, 3), (0, 2, 0.0, 0), (1, 1, 5.0, 1), (1, 1, 3.0, 1), (2, 0, 9.0, 1), (2, 0, 9.0, 1)]
    assert mean_by_rows(parts) == pytest.approx(8 / 3)


LLAMA = {"model_type": "llama", "num_attention_heads": 12, "num_key_value_heads": 4}


@pytest.mark.parametrize(
    ("config", "count", "processes", "said"),
    [
        (LLAMA, 2, 8, None),
        (LLAMA, 4, 8, None),
        ({**LLAMA, "num_attention_heads": 8, "num_key_value_heads": 2}, 8, 8, None),  # a copy of a group for four
        ({}, 8, 8, None),  # not known yet
        (LLAMA, 8, 8, "divides the model's 12 attention heads in 4 groups: use 1 or 4"),
        ({"n_head": 9, "model_type": "x"}, 2, 6, "divides the model's 9 attention heads: use 1 or 3"),
        ({"model_type": "gpt2", "n_head": 4}, 2, 2, "for a model of type gpt2"),
        ({**LLAMA, "sliding_window": 4096}, 2, 2, "layers of sliding_attention"),
        ({**LLAMA, "sliding_window": 4096, "use_sliding_window": False}, 2, 2, None),
        ({**LLAMA, "layer_types": ["full_attention", "linear_attention"]}, 2, 2, "layers of linear_attention"),
        ({**LLAMA, "router_aux_loss_coef": 0.001}, 2, 2, "for a mixture of experts"),
        ({"text_config": {**LLAMA, "num_attention_heads": 5, "num_key_value_heads": 5}}, 2, 2, "5 attention heads"),
    ],
)
def test_models_that_cannot_be_sharded_are_named(
    config: dict[str, Any], count: int, processes: int, said: str | None
) -> None:
    problems = sequence_parallel_problems(config, count, processes)
    if said is None:
        assert not problems
        return
    told = ": ".join(part for part in (problems[0].found, problems[0].expected, problems[0].remedy) if part)
    assert said in told


@pytest.mark.parametrize(
    ("compute", "said"),
    [
        ({"processes": 2, "sequence_parallel": 2}, "must be 1 without compute.zero"),
        (
            {"processes": 4, "sequence_parallel": 3, "zero": 1},
            "processes × nodes, which is 4: set compute.sequence_parallel: 4",
        ),
        ({"processes": 2, "sequence_parallel": 2, "zero": 3, "attention": "eager"}, "compute.attention: eager"),
        ({"processes": 2, "sequence_parallel": 2, "zero": 3}, None),
    ],
)
def test_what_excludes_shards(compute: dict[str, Any], said: str | None) -> None:
    contradictions = Compute(**compute).contradictions()
    assert [name for name, *_ in contradictions] == ([] if said is None else ["sequence_parallel"])
    if said is not None:
        assert said in ": ".join(contradictions[0][1:])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, []),
        ({"label_smoothing_factor": 0, "loss_type": "nll", "adam_beta2": 0.9}, []),
        ({"label_smoothing_factor": 0.1}, ["train.label_smoothing_factor is 0.1 with compute.sequence_parallel"]),
        ({"loss_type": "dft"}, ["train.loss_type is dft with compute.sequence_parallel"]),
    ],
)
def test_only_the_models_own_loss_is_shared(fields: dict[str, Any], said: list[str]) -> None:
    assert [problem.found for problem in field_problems(fields)] == said


@pytest.mark.parametrize(("longest", "said"), [(64, None), (65, "Set train.max_length: 64"), (66, None)])
def test_rows_are_not_padded_beyond_the_context(longest: int, said: str | None) -> None:
    config = LlamaConfig(num_attention_heads=4, max_position_embeddings=65 if longest == 65 else 66)
    config._attn_implementation = "sdpa"
    dims = ParallelDims(2, sequence_parallel=2, zero=1)
    ctx = SimpleNamespace(dims=dims, compute=ComputeSettings(device="cpu"), name="base")
    if said is None:
        refuse_sequence_parallel(ctx, SimpleNamespace(config=config), longest)
        return
    with pytest.raises(PipelineError, match=re.escape(said)):
        refuse_sequence_parallel(ctx, SimpleNamespace(config=config), longest)
