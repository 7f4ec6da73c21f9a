"""The networks of benchmarks/a100.py: random weights from a seed, and random samples of their shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

SAMPLES = 64
TOKENS, VOCABULARY = 128, 30522


@dataclass(frozen=True)
class Network:
    """One network, and how `nm2trt export` is told what it is."""

    name: str
    make: Callable[[], nn.Module]
    export_options: tuple[str, ...]
    sample: tuple[int, ...]
    """One image; for tokens their number."""
    is_folder: bool = False
    """Written as transformers does: config.json beside model.safetensors."""

    @property
    def weights_file(self) -> str:
        return "model.safetensors"


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import torchvision

        module: nn.Module = torchvision.models.get_model(name, weights=None)
        return module

    return make


def _tiny() -> nn.Module:
    from nm2trt.models import build_model

    return build_model("resnet8", (1, 8, 8), 10)


def _bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig())


def _images(name: str, shape: tuple[int, ...], classes: int, make: Callable[[], nn.Module]) -> Network:
    options = ("--model", "resnet8" if name == "tiny" else name, "--input-shape", ",".join(map(str, shape)))
    return Network(name, make, (*options, "--classes", str(classes)), shape)


NETWORKS = {
    one.name: one
    for one in (
        _images("resnet50", (3, 224, 224), 1000, _torchvision("resnet50")),
        _images("vit_b_16", (3, 224, 224), 1000, _torchvision("vit_b_16")),
        Network(
            "bert",
            _bert,
            ("--model", "transformers:BertModel", "--input", f"input_ids={TOKENS}:int64", "--input",
             f"attention_mask={TOKENS}:int64"),
            (TOKENS,),
            is_folder=True,
        ),
        _images("tiny", (1, 8, 8), 10, _tiny),
    )
}  # fmt: skip


def write_weights(network: Network, path: Path) -> None:
    """Write random weights, once."""
    if path.exists():
        return
    import torch
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    module = network.make().eval()
    if network.is_folder:
        module.save_pretrained(path.parent)  # type: ignore[operator]
    else:
        save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, path)


def write_samples(network: Network, path: Path) -> None:
    """Write random samples, once: images, or tokens with a full mask."""
    if path.exists():
        return
    import numpy as np

    rng = np.random.default_rng(0)
    if network.is_folder:
        ids = rng.integers(0, VOCABULARY, (SAMPLES, *network.sample), dtype=np.int64)
        np.savez(path, input_ids=ids, attention_mask=np.ones_like(ids))
    else:
        np.savez(path, input=rng.standard_normal((SAMPLES, *network.sample)).astype(np.float32))
