"""`--init`: the weights that a run starts from."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from nm2trt.errors import InputError
from nm2trt.layers.torch_reader import named_tensors, torch_content
from nm2trt.models import load_strict
from nm2trt.training import checkpoint

_HINT = "give a checkpoint of the same --model and number of classes"


def load_init(model: nn.Module, path: Path, *, option: str = "--init") -> None:
    """Load a network's weights in place, whatever their dtype.

    Args:
        model: The network.
        path: Safetensors; a file of `torch.save` (read weights-only, so no code in it runs) with a state dict or
            dicts around one; or a run folder of `nm2trt train`.
        option: What named it, for the error line.

    Raises:
        InputError: The file is missing or unreadable, or its names or shapes are not the network's.
    """
    file = path / checkpoint.FILE if path.is_dir() else path
    if not file.is_file():
        raise InputError("no such checkpoint", where=file, hint=f"give its path with {option}")
    content = _safetensors(file) if file.suffix == ".safetensors" else torch_content(file)
    load_strict(model, named_tensors(content, file), file, hint=_HINT)


def _safetensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"no readable safetensors: {error}", where=file, hint="save it again") from None
