import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nm2trt.data.transcription import Transcription, best_path, edit_distances

TASK = Transcription("score")
rows = st.lists(st.lists(st.integers(1, 3), max_size=6), min_size=1, max_size=5)


def padded(lists, width):
    return torch.tensor([row + [0] * (width - len(row)) for row in lists])


def levenshtein(first, second):
    """The plain recursion."""
    if not first or not second:
        return len(first) + len(second)
    return min(
        levenshtein(first[1:], second) + 1,
        levenshtein(first, second[1:]) + 1,
        levenshtein(first[1:], second[1:]) + (first[0] != second[0]),
    )


@given(rows, st.data())
def test_edit_distances_are_those_of_the_plain_recursion(targets, data):
    found = [data.draw(st.lists(st.integers(1, 3), max_size=6)) for _ in targets]
    lengths = [torch.tensor([len(row) for row in lists]) for lists in (found, targets)]
    edits = edit_distances(padded(found, 7), lengths[0], padded(targets, 8), lengths[1])
    assert edits.tolist() == [levenshtein(one, other) for one, other in zip(found, targets, strict=True)]


@given(st.lists(st.lists(st.integers(0, 3), min_size=8, max_size=8), min_size=1, max_size=5))
def test_the_best_path_merges_and_then_drops_blanks(classes):
    expected = [[key for key, _ in itertools.groupby(row) if key] for row in classes]
    found, lengths = best_path(torch.tensor(classes))
    assert lengths.tolist() == [len(row) for row in expected]
    assert torch.equal(found, padded(expected, 8))


def test_the_loss_sums_all_paths():
    """Two slots, target [1]: the paths 11, 10 and 01."""
    output = torch.tensor([[[0.3, 1.0, -1.0], [0.1, 0.2, 0.7]]])
    p = output[0].softmax(dim=1).tolist()
    likelihood = p[0][1] * p[1][1] + p[0][1] * p[1][0] + p[0][0] * p[1][1]
    assert TASK.losses(output, torch.tensor([[1, 0]])).tolist() == pytest.approx([-math.log(likelihood)])


def test_the_loss_is_per_phoneme_and_finite_where_a_target_does_not_fit():
    output = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([[1, 2, 0, 0, 0], [1, 2, 1, 2, 1]])
    losses = TASK.losses(output, y)
    whole = torch.nn.functional.ctc_loss(
        output[:1].log_softmax(2).transpose(0, 1), y[:1, :2], [4], [2], reduction="sum"
    )
    assert losses.tolist() == pytest.approx([float(whole) / 2, 0.0])


def test_the_score_is_the_error_rate():
    y = torch.tensor([[1, 2, 0], [2, 2, 1]])
    right = torch.nn.functional.one_hot(torch.tensor([[1, 1, 0, 2, 0], [2, 0, 2, 1, 1]]), 3).float()
    assert TASK.score(right, y).tolist() == [[0, 2], [0, 3]]
    # 1 for 1 2 lacks one; 2 1 for 2 2 1 lacks one.
    worse = torch.nn.functional.one_hot(torch.tensor([[1, 1, 0, 0, 0], [2, 2, 2, 1, 1]]), 3).float()
    assert TASK.score(worse, y).tolist() == [[1, 2], [1, 3]]
