"""SR-STE in a Hugging Face Trainer: one callback makes every Linear of the network 2:4, resuming included.

    pip install 'nm2trt[huggingface]'
    python examples/hf_trainer.py -o runs/hf [--epochs 12] [--resume]

Trains a small vision transformer from random weights on the digits inside scikit-learn; nothing is downloaded. Each
checkpoint that the Trainer saves is 2:4 as it is: `nm2trt verify runs/hf/checkpoint-*`. SAD of every layer is in
runs/hf/sad.csv.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from nm2trt.integrations.huggingface import SparsifyCallback


class Digits(Dataset[dict[str, Any]]):
    """8x8 gray images, as a ViT takes them."""

    def __init__(self, part: slice) -> None:
        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))[part]
        self.x = torch.tensor(digits.images[order] / 8.0 - 1.0, dtype=torch.float32).unsqueeze(1)
        self.y = torch.tensor(digits.target[order])

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.x[index], "labels": self.y[index]}


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--resume", action="store_true", help="Go on from the last checkpoint in OUTPUT.")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    shape = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = ViTForImageClassification(ViTConfig(**shape, **size))
    # The Trainer steps AdamW, whose second moments moving masks spoil: hold them in the last quarter.
    callback = SparsifyCallback("2:4", "sr-ste", freeze_from=0.75)
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(arguments.output),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=64,
            per_device_eval_batch_size=512,
            learning_rate=3e-3,
            weight_decay=0.01,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            eval_strategy="epoch",
            save_strategy="epoch",
            logging_strategy="epoch",
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
            seed=0,
        ),
        train_dataset=Digits(slice(0, 1400)),
        eval_dataset=Digits(slice(1400, None)),
        compute_metrics=accuracy,
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=arguments.resume)

    for layer in callback.sparsifier.report():
        if layer.pattern is None:
            print(f"dense: {layer.name} {list(layer.shape)}: {layer.reason}")
    sad = callback.sparsifier.record_sad().total
    print(f"{len(callback.sparsifier.patterns())} weights are 2:4; {sad.flips_per_weight:.2f} flips a weight")
    print(f"test accuracy {trainer.evaluate()['eval_accuracy']:.4f}")


if __name__ == "__main__":
    main()
