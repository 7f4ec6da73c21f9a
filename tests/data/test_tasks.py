"""A task says which scores are better, in words that there are, before anything is trained."""

from dataclasses import dataclass, replace

import pytest

from nm2trt.data import load_data
from nm2trt.data.tasks import Classification, better_of
from nm2trt.data.transcription import Transcription
from nm2trt.errors import InputError


class Silent:
    score_name = "BLEU"


@dataclass
class Worded:
    score_better: str


def test_higher_unless_a_task_says_otherwise():
    assert better_of(Classification()) == better_of(Silent()) == "higher"
    assert better_of(Transcription("phoneme error rate")) == "lower"
    assert better_of(Worded("lower")) == "lower"


def test_other_words_are_refused_when_the_data_set_is_made():
    with pytest.raises(InputError, match=r"Worded: score_better is 'lowest'; use \"higher\" or \"lower\""):
        replace(load_data("digits"), task=Worded("lowest"))
