"""Which rows make which batch: laws that training's reproducibility stands on."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.data.batches import WINDOW_BATCHES, Batches

LENGTHS = [5, 9, 2, 7, 7, 3, 8, 1, 6, 4, 2]


def _lengths(count: int, longest: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randint(1, longest) for _ in range(count)]


def _epoch(batches: Batches, epoch: int) -> list[list[int]]:
    batches.set_epoch(epoch)
    return list(batches)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=4, max_size=90),
    sizes=st.sampled_from([(4, 1), (4, 2), (4, 4), (6, 3), (1, 1)]),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_an_epoch_yields_each_row_at_most_once_in_full_batches(
    lengths: list[int], sizes: tuple[int, int], seed: int, epoch: int, shuffle: bool
) -> None:
    batch_size, micro_batch = sizes
    batches = Batches(lengths, batch_size, micro_batch, seed, shuffle)
    yielded = _epoch(batches, epoch)
    rows = [row for group in yielded for row in group]
    assert len(rows) == len(set(rows)) == len(lengths) // batch_size * batch_size
    assert all(len(group) == micro_batch for group in yielded)
    assert len(yielded) == len(batches)


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 6])
@pytest.mark.parametrize("epoch", [0, 2])
def test_the_rows_of_a_step_do_not_depend_on_the_micro_batch(micro_batch: int, epoch: int) -> None:
    lengths = _lengths(100, 50, seed=1)
    whole = _epoch(Batches(lengths, 6, 6, seed=4), epoch)
    parts = _epoch(Batches(lengths, 6, micro_batch, seed=4), epoch)
    per_step = 6 // micro_batch
    joined = [[row for part in parts[i : i + per_step] for row in part] for i in range(0, len(parts), per_step)]
    assert joined == whole


def test_seed_and_epoch_change_the_order_and_nothing_else_does() -> None:
    lengths = _lengths(64, 50, seed=2)
    batches = Batches(lengths, 4, 2, seed=1)
    first, second = _epoch(batches, 0), _epoch(batches, 1)
    assert first != second
    assert _epoch(batches, 0) == first
    assert _epoch(Batches(lengths, 4, 2, seed=1), 0) == first
    assert _epoch(Batches(lengths, 4, 2, seed=2), 0) != first


def test_rows_left_out_of_an_epoch_differ_between_epochs() -> None:
    # 11 rows in batches of 4: 3 rows are left out each time.
    batches = Batches(LENGTHS, 4, 4, seed=0)
    left_out = {frozenset(range(11)) - {row for group in _epoch(batches, epoch) for row in group} for epoch in range(8)}
    assert all(len(rows) == 3 for rows in left_out)
    assert len(left_out) > 1


def test_file_order_keeps_windows_and_drops_the_end_of_the_file() -> None:
    count = 2 * WINDOW_BATCHES * 2 + 1
    batches = Batches(list(range(1, count + 1)), 2, 2, seed=0, shuffle=False)
    rows = [row for group in _epoch(batches, 0) for row in group]
    half = WINDOW_BATCHES * 2
    assert sorted(rows[:half]) == list(range(half))
    assert sorted(rows[half:]) == list(range(half, 2 * half))


def test_batches_of_similar_lengths_need_less_padding_than_random_ones() -> None:
    lengths = _lengths(512, 100, seed=3)

    def padded(groups: list[list[int]]) -> int:
        return sum(len(group) * max(lengths[row] for row in group) for group in groups)

    order = list(range(512))
    random.Random(4).shuffle(order)
    by_chance = padded([order[i : i + 8] for i in range(0, 512, 8)])
    bucketed = padded(_epoch(Batches(lengths, 8, 8, seed=0), 0))
    # Random lengths 1 to 100: the longest of 8 is about 89 on average, the mean about 50.
    assert sum(lengths) <= bucketed < 1.15 * sum(lengths)
    assert by_chance > 1.6 * sum(lengths)


def test_tokens_of_some_steps_are_the_real_tokens_of_their_rows() -> None:
    # All rows but three: batches of 4, two steps an epoch. Over whole epochs every step counts its own 4 rows.
    batches = Batches(LENGTHS, 4, 2, seed=0)
    groups = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        groups += list(batches.batches())
    assert batches.batches_per_epoch == 2
    for steps in (1, 2, 3, 5):
        assert batches.tokens(steps) == sum(LENGTHS[row] for group in groups[:steps] for row in group)
    assert batches.epoch == 2  # counting does not move the sampler


def test_tokens_by_hand() -> None:
    # One batch holds every row, so each of the three epochs trains 1 + 2 + 3 tokens.
    assert Batches([1, 2, 3], 3, 1, seed=9).tokens(3) == 18
    assert Batches([1, 2], 3, 1, seed=9).tokens(3) == 0  # no full batch


def test_a_loader_that_skips_batches_yields_the_rest_of_the_same_epoch() -> None:
    """What a resumed trainer does: skip the micro-batches it has trained on, in the epoch it was in."""
    from accelerate import Accelerator, skip_first_batches
    from torch.utils.data import DataLoader

    lengths = _lengths(40, 20, seed=5)
    rows = list(range(40))

    def loader() -> tuple[DataLoader, Batches]:
        batches = Batches(lengths, 4, 2, seed=1)
        made = DataLoader(rows, batch_sampler=batches, collate_fn=list)
        return Accelerator(cpu=True).prepare(made), batches

    expected = _epoch(Batches(lengths, 4, 2, seed=1), 3)
    whole, _ = loader()
    whole.set_epoch(3)
    assert list(whole) == expected
    resumed, batches = loader()
    rest = skip_first_batches(resumed, 6)
    rest.set_epoch(3)
    batches.set_epoch(3)  # transformers' Trainer reaches for the sampler itself too
    assert list(rest) == expected[6:]


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="batch of 8 rows does not divide into micro-batches of 3"):
        Batches([1] * 8, 8, 3, seed=0)
