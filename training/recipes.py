"""Named settings that a configuration starts from; its own values and the command's options win."""

from __future__ import annotations

from typing import Any, Literal

Recipe = Literal["imagenet-paper", "finetune", "transformer"]

RECIPES: dict[str, dict[str, Any]] = {
    # Zhou et al., ICLR 2021, section 4 and its published configuration; 256 samples in all processes together.
    "imagenet-paper": {
        "batch_size": 256,
        "epochs": 120,
        "warmup_epochs": 5.0,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-5,
        "decay": 2e-4,
    },
    # A tenth of the paper's epochs and rate: the weights are near a minimum, only the masks have to settle.
    "finetune": {
        "batch_size": 64,
        "epochs": 10,
        "warmup_epochs": 0.5,
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 5e-5,
        "decay": 2e-4,
    },
    # On cmudict, 150 steps with AdamW brought encoder-small's loss to 1.6, with SGD at lr 0.1 to 3.5.
    "transformer": {
        "optimizer": "adamw",
        "batch_size": 256,
        "epochs": 10,
        "warmup_epochs": 0.25,
        "lr": 1e-3,
        "weight_decay": 0.01,
        "decay": 2e-4,
    },
}
