"""Products in the form that torch's 2:4 kernels take: [out, in] weights behind F.linear."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class MatrixProduct(nn.Module):
    """A Linear that takes its input row by row or column by column without a copy, as torch's 2:4 products do.

    Attributes:
        weight: [out, in], dense or packed.
        bias: [out] or None.
    """

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_OI.detach(), requires_grad=False)
        self.bias = None if bias_O is None else nn.Parameter(bias_O.detach(), requires_grad=False)

    def forward(self, x_BI: torch.Tensor) -> torch.Tensor:
        """Map [..., in] to [..., out]."""
        y_MO = functional.linear(x_BI.reshape(-1, x_BI.shape[-1]), self.weight, self.bias)
        return y_MO.view(*x_BI.shape[:-1], -1)


class PointwiseProduct(MatrixProduct):
    """A 1x1 convolution as a matrix product over the pixels of a channels_last tensor.

    Attributes:
        stride: Of the convolution, by axis.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.weight.detach().flatten(1).contiguous(), conv.bias)
        self.stride = conv.stride

    def forward(self, x_BIHW: torch.Tensor) -> torch.Tensor:
        """Map [B, in, H, W] to [B, out, H / stride, W / stride], channels_last."""
        if self.stride != (1, 1):
            x_BIHW = x_BIHW[:, :, :: self.stride[0], :: self.stride[1]]
        x_BHWI = x_BIHW.permute(0, 2, 3, 1)
        return super().forward(x_BHWI).permute(0, 3, 1, 2)


class SelfAttention(nn.Module):
    """torch's MultiheadAttention for self-attention without masks, with its projections as products of their own.

    Attributes:
        in_proj: Queries, keys and values in one product.
        out_proj: The output's product.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        assert attention.in_proj_weight is not None
        self.num_heads = attention.num_heads
        self.batch_first = attention.batch_first
        self.in_proj = MatrixProduct(attention.in_proj_weight, attention.in_proj_bias)
        self.out_proj = MatrixProduct(attention.out_proj.weight, attention.out_proj.bias)

    def forward(
        self, query_BLK: torch.Tensor, key_BLK: torch.Tensor, value_BLK: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, None]:
        """Map [B, L, K] (or [L, B, K]) to the same, as MultiheadAttention does with need_weights=False."""
        assert query_BLK is key_BLK is value_BLK
        x_BLK = query_BLK if self.batch_first else query_BLK.transpose(0, 1)
        batch, length, features = x_BLK.shape
        qkv_BLF = self.in_proj(x_BLK)
        heads = [
            part.reshape(batch, length, self.num_heads, -1).transpose(1, 2) for part in qkv_BLF.split(features, dim=-1)
        ]
        y_BHLD = functional.scaled_dot_product_attention(*heads)
        y_BLK = self.out_proj(y_BHLD.transpose(1, 2).reshape(batch, length, features))
        return (y_BLK if self.batch_first else y_BLK.transpose(0, 1)), None
