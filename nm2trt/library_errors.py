"""Errors of other libraries as one line that is never cut inside a sentence."""

from __future__ import annotations

_LONGEST = 200


def one_line(error: BaseException | str, *, longest: int = _LONGEST, whole: bool = False) -> str:
    """First line of an error's text; of a long one its first sentence, or else as many whole words as fit.

    Args:
        error: Or its text.
        longest: From how many characters on a line is long.
        whole: Take all its lines as one, where the first says little.
    """
    text = str(error).strip()
    lines = [" ".join(text.split())] if whole and text else text.splitlines()
    if not lines:
        return "no reason given" if isinstance(error, str) else type(error).__name__
    line = lines[0].strip()
    if len(line) <= longest:
        return line
    sentence = line.partition(". ")[0]
    if len(sentence) <= longest:
        return sentence
    return line[:longest].rpartition(" ")[0] + " ..."
