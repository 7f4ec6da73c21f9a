"""What a Hugging Face config.json beside the weights says about them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = "config.json"
_LARGEST_BYTES = 1 << 24
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "gptsan")
"""Model types of transformers whose linear layers are `Conv1D` modules, with weights [in, out]
(transformers.pytorch_utils.Conv1D)."""
_DEPTH_LIMIT = 8


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The few facts that reading weights needs; empty where there is no config.json."""

    conv1d: bool = False
    """Its linear layers named c_attn, c_proj, c_fc and q_attn hold [in, out]."""
    vocabulary_sizes: frozenset[int] = frozenset()
    """Rows of tables that tokens, positions and token types are looked up in."""
    quantization: str = ""
    """Quantization method, such as "gptq" or "compressed-tensors"."""


def read_config(file: Path) -> ModelConfig:
    """Read the config.json in the folder of a weight file; a broken one counts as none."""
    raw = _read_json(file.parent / CONFIG)
    maps = list(_maps(raw, 0))
    types = [str(found.get("model_type", "")).lower() for found in maps]
    types += [str(name).lower() for found in maps for name in _list(found.get("architectures"))]
    sizes = {found.get(key) for found in maps for key in ("vocab_size", "n_positions", "max_position_embeddings")}
    quantization = next((found["quantization_config"] for found in maps if "quantization_config" in found), None)
    return ModelConfig(
        conv1d=any(_is_conv1d(name) for name in types),
        vocabulary_sizes=frozenset(size for size in sizes if isinstance(size, int) and size > 1),
        quantization=str(quantization.get("quant_method", "")) if isinstance(quantization, dict) else "",
    )


def read_model_type(path: Path) -> str:
    """Read `model_type`, by which transformers finds the network's class; empty where a config.json has none."""
    raw = _read_json(path)
    found = raw.get("model_type") if isinstance(raw, dict) else None
    return found if isinstance(found, str) else ""


def _read_json(path: Path) -> Any:
    """What the file holds; None where it is missing or broken."""
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            return None
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _is_conv1d(name: str) -> bool:
    if name in _CONV1D_MODELS:
        return True
    return name.startswith(("gpt2", "openaigpt", "imagegpt", "decisiontransformer")) and "bigcode" not in name


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _maps(value: Any, depth: int) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict) and depth < _DEPTH_LIMIT:
        yield value
        for child in value.values():
            yield from _maps(child, depth + 1)
