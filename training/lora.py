"""LoRA on N:M weights: merging an adapter without losing the pattern."""

from __future__ import annotations

import torch

from nm2trt.errors import ConfigError


@torch.no_grad()
def merge_lora(base_OI: torch.Tensor, a_RI: torch.Tensor, b_OR: torch.Tensor, scale: float) -> torch.Tensor:
    """Merge a low-rank adapter into a sparse weight where the weight is not zero.

    The plain merge W + scale * B A (Hu et al., "LoRA", ICLR 2022) is dense. Here zeros stay zero, so whatever N:M
    pattern the base has, along any axis, the result has. The network with the merged weight is not the one with the
    adapter beside it: what the adapter did at pruned places is gone, so measure the merged one.

    Args:
        base_OI: The base weight, any float dtype.
        a_RI: The adapter's down projection (PEFT: lora_A.weight).
        b_OR: Its up projection (PEFT: lora_B.weight).
        scale: lora_alpha / rank; with rank-stabilized LoRA, lora_alpha / sqrt(rank).

    Returns:
        A new tensor of the base's shape and dtype: base + scale * (b @ a) where the base is not zero, else zero. The
        sum is taken in float32, or in float64 where one of the three is.

    Raises:
        ConfigError: The shapes do not fit, or a tensor is not floating.
    """
    tensors = {"base": base_OI, "a": a_RI, "b": b_OR}
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or not tensor.is_floating_point():
            raise ConfigError(
                f"is no floating-point matrix but {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}",
                where=f"merge_lora: {name}",
            )
    rank = a_RI.shape[0]
    if b_OR.shape != (base_OI.shape[0], rank) or a_RI.shape[1] != base_OI.shape[1]:
        raise ConfigError(
            f"b {list(b_OR.shape)} times a {list(a_RI.shape)} is no change of a weight of {list(base_OI.shape)}",
            where="merge_lora",
            hint="a is [rank, inputs], b is [outputs, rank]; swap or transpose them",
        )
    wide = torch.float64 if torch.float64 in {tensor.dtype for tensor in tensors.values()} else torch.float32
    delta_OI = b_OR.to(base_OI.device, wide) @ a_RI.to(base_OI.device, wide)
    merged_OI = (base_OI.to(wide) + scale * delta_OI).to(base_OI.dtype)
    return torch.where(base_OI != 0, merged_OI, base_OI)
