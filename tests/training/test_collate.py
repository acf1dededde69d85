"""Padding to the right without a mask is as good as with one: same loss, same gradients."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.labels import IGNORE
from pipeline.training.data.collate import CausalCollator, PairCollator
from pipeline.training.data.packing import packed

ROWS = [
    {"input_ids": [7, 8, 9, 10, 11, 1], "labels": [IGNORE, IGNORE, 9, 10, 11, 1]},
    {"input_ids": [12, 13, 1], "labels": [IGNORE, 13, 1]},
    {"input_ids": [14, 1]},
]


def test_rows_are_padded_to_the_longest_and_padding_is_not_learnt() -> None:
    batch = CausalCollator(pad_id=0)(ROWS)
    assert set(batch) == {"input_ids", "labels"}
    assert batch["input_ids"].tolist() == [[7, 8, 9, 10, 11, 1], [12, 13, 1, 0, 0, 0], [14, 1, 0, 0, 0, 0]]
    i = IGNORE
    # A row without labels of its own is learnt whole.
    assert batch["labels"].tolist() == [[i, i, 9, 10, 11, 1], [i, 13, 1, i, i, i], [14, 1, i, i, i, i]]


def test_the_end_token_is_learnt_even_where_it_also_pads() -> None:
    batch = CausalCollator(pad_id=1)(ROWS)
    assert batch["input_ids"][1].tolist() == [12, 13, 1, 1, 1, 1]
    assert batch["labels"][1].tolist() == [IGNORE, 13, 1, IGNORE, IGNORE, IGNORE]


def _loss_and_gradients(model: Any, batch: dict[str, torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters()]


def test_no_mask_gives_the_loss_and_gradients_of_an_honest_mask(tiny_model: Any) -> None:
    plain = CausalCollator(pad_id=0)(ROWS)
    lengths = torch.tensor([len(row["input_ids"]) for row in ROWS])
    honest = {**plain, "attention_mask": (torch.arange(6)[None] < lengths[:, None]).long()}
    ones = CausalCollator(pad_id=0, with_mask=True)(ROWS)
    assert ones["attention_mask"].all()
    expected_loss, expected = _loss_and_gradients(tiny_model, honest)
    for batch in (plain, ones):
        loss, gradients = _loss_and_gradients(tiny_model, batch)
        assert abs(loss - expected_loss) <= 1e-6
        for gradient, wanted in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=0)


def test_pairs_come_all_chosen_first_with_a_mask_and_their_margins() -> None:
    rows = [
        {"chosen_ids": [5, 6, 1], "rejected_ids": [5, 1], "margin": 0.5},
        {"chosen_ids": [7, 1], "rejected_ids": [7, 8, 9, 1], "margin": 2.0},
    ]
    batch = PairCollator(pad_id=0)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 1, 0], [7, 1, 0, 0], [5, 1, 0, 0], [7, 8, 9, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["margin"].tolist() == [0.5, 2.0]
    assert "margin" not in PairCollator(pad_id=0)([{key: row[key] for key in list(row)[:2]} for row in rows])


CONVERSATIONS = [list(range(10, 17)), list(range(30, 35)), list(range(50, 59)), list(range(70, 73))]


def test_packed_conversations_do_not_see_one_another() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=80, initializer_range=0.3, **sizes)).eval()
    joined = packed([{"input_ids": ids, "labels": list(ids)} for ids in CONVERSATIONS], 12)
    # Best fit, longest first: 9 + 3 fill a row of 12, 7 + 5 another.
    assert sorted(row["seq_lengths"] for row in joined) == [[7, 5], [9, 3]]
    batch = CausalCollator(pad_id=0, with_mask=True)(joined)
    assert "attention_mask" not in batch  # with one, transformers would not look where sequences start
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        for i, row in enumerate(joined):
            start = 0
            for length in row["seq_lengths"]:
                ids = torch.tensor([row["input_ids"][start : start + length]])
                alone = model(input_ids=ids).logits[0]
                torch.testing.assert_close(logits[i, start : start + length], alone, rtol=1e-4, atol=1e-4)
                assert batch["labels"][i, start] == IGNORE
                start += length


def test_flat_rows_say_where_sequences_end() -> None:
    joined = packed([{"input_ids": ids, "labels": list(ids)} for ids in CONVERSATIONS], 12)
    batch = CausalCollator(pad_id=0, flat=True)(joined)
    assert batch["input_ids"].shape == (1, 24)
    lengths = [length for row in joined for length in row["seq_lengths"]]
    assert batch["cu_seq_lens_q"].diff().tolist() == lengths
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert (batch["max_length_q"], batch["max_length_k"]) == (9, 9)
    assert (batch["position_ids"] == 0).sum() == 4
