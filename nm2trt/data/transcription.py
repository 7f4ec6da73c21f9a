"""Sequences to shorter sequences, aligned by the loss: connectionist temporal classification."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nm2trt.data.tasks import Better

BLANK = 0


@dataclass(frozen=True, slots=True)
class Transcription:
    """CTC (Graves et al. 2006) and the error rate of the best path, which may pass 1.

    Output is logits [B, T, classes], class 0 the blank; y is [B, S] padded with blanks.
    """

    score_name: str
    score_better: Better = "lower"

    def losses(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the negative log-likelihood of each target, divided by its length, [B].

        A target that does not fit into T slots counts as 0.
        """
        B, T, _ = output.shape
        lengths_B = (y != BLANK).sum(dim=1)
        losses_B = F.ctc_loss(
            output.float().log_softmax(dim=2).transpose(0, 1),
            y,
            torch.full((B,), T, dtype=torch.int64, device=y.device),
            lengths_B,
            blank=BLANK,
            reduction="none",
            zero_infinity=True,
        )
        return losses_B / lengths_B.clamp(min=1)

    def score(self, output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return [B, 2]: the edits that mend the best path, and the target's length."""
        lengths_B = (y != BLANK).sum(dim=1)
        edits_B = edit_distances(*best_path(output.argmax(dim=2)), y, lengths_B)
        return torch.stack([edits_B, lengths_B], dim=1).float()


def best_path(classes_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge repetitions and drop blanks: [B, T] -> ([B, T] padded with blanks, lengths [B])."""
    before_BT = F.pad(classes_BT, (1, 0), value=BLANK)[:, :-1]
    kept_BT = (classes_BT != BLANK) & (classes_BT != before_BT)
    order_BT = torch.argsort((~kept_BT).to(torch.uint8), dim=1, stable=True)
    found_BT = torch.where(kept_BT, classes_BT, BLANK).gather(1, order_BT)
    return found_BT, kept_BT.sum(dim=1)


def edit_distances(
    found_BT: torch.Tensor, found_lengths_B: torch.Tensor, y_BS: torch.Tensor, lengths_B: torch.Tensor
) -> torch.Tensor:
    """Levenshtein distance of each pair of rows, [B] int64; a row of the table at a time, all pairs at once."""
    B, S = y_BS.shape
    column_S = torch.arange(S + 1, device=y_BS.device)
    row_BS = column_S.repeat(B, 1)
    for t in range(found_BT.shape[1]):
        substituted_BS = row_BS[:, :-1] + (y_BS != found_BT[:, t, None])
        down_BS = row_BS + 1
        down_BS[:, 1:] = torch.minimum(down_BS[:, 1:], substituted_BS)
        # An insertion adds 1 for each column to the right, so the running minimum is taken without that slope.
        next_BS = (down_BS - column_S).cummin(dim=1).values + column_S
        row_BS = torch.where((t < found_lengths_B)[:, None], next_BS, row_BS)
    return row_BS.gather(1, lengths_B[:, None])[:, 0]
