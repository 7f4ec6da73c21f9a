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
    vocabulary: int = 0
    """Token ids are below this."""

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


def small_resnet50(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """ResNet-50's blocks, one of each width, for rehearsals."""
    from torchvision.models.resnet import Bottleneck, ResNet

    del input_shape  # any size
    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=classes, width_per_group=16)


def small_vit_b_16(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Two of ViT's blocks, narrow, for rehearsals."""
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=input_shape[-1],
        patch_size=16,
        num_layers=2,
        num_heads=2,
        hidden_dim=64,
        mlp_dim=128,
        num_classes=classes,
    )


def _bert(**sizes: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from transformers import BertConfig, BertModel

        # With its pooler, as `nm2trt export --model transformers:BertModel` makes it.
        return BertModel(BertConfig(**sizes))

    return make


def _images(
    name: str, shape: tuple[int, ...], classes: int, make: Callable[[], nn.Module], *, model: str = ""
) -> Network:
    options = ("--model", model or name, "--input-shape", ",".join(map(str, shape)))
    return Network(name, make, (*options, "--classes", str(classes)), shape)


def _tokens(name: str, count: int, vocabulary: int, **sizes: int) -> Network:
    options = ["--model", "transformers:BertModel"]
    for port in ("input_ids", "attention_mask"):
        options += ["--input", f"{port}={count}:int64"]
    make = _bert(vocab_size=vocabulary, **sizes)
    return Network(name, make, tuple(options), (count,), is_folder=True, vocabulary=vocabulary)


_SMALL = (3, 32, 32)


NETWORKS = {
    one.name: one
    for one in (
        _images("resnet50", (3, 224, 224), 1000, _torchvision("resnet50")),
        _images("vit_b_16", (3, 224, 224), 1000, _torchvision("vit_b_16")),
        _tokens("bert", TOKENS, VOCABULARY),
        _images("tiny", (1, 8, 8), 10, _tiny, model="resnet8"),
        _images("small-resnet50", _SMALL, 10, lambda: small_resnet50(_SMALL, 10), model="a100_networks:small_resnet50"),
        _images("small-vit_b_16", _SMALL, 10, lambda: small_vit_b_16(_SMALL, 10), model="a100_networks:small_vit_b_16"),
        _tokens(
            "small-bert", 16, 128, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
        ),
    )
}
SMALL = ("small-resnet50", "small-vit_b_16", "small-bert")
"""The three networks of a full run at a size for rehearsals."""


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
        ids = rng.integers(0, network.vocabulary, (SAMPLES, *network.sample), dtype=np.int64)
        np.savez(path, input_ids=ids, attention_mask=np.ones_like(ids))
    else:
        np.savez(path, input=rng.standard_normal((SAMPLES, *network.sample)).astype(np.float32))
