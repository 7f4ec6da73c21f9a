"""A network's products: found by running it once, rewritten as matrix products, and packed for 2:4 kernels."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from nm2trt.reasons import Reason
from nm2trt.torch_sparse.backends import BackendName, tensor_class
from nm2trt.torch_sparse.eligibility import count_violations, why_not_eligible, write_sizes
from nm2trt.torch_sparse.modules import MatrixProduct, PointwiseProduct, SelfAttention

Pack = Callable[[torch.Tensor], torch.Tensor]

_SPARSE_FROM = 0.25
"""With a smaller share of zeros, and most groups broken, a weight was never meant to be sparse; as in verify."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductLayer:
    """One weight that multiplies, and what is known of it."""

    name: str
    """Of the parameter, as in the state dict."""
    module: str
    """Where it is found in the rewritten network; the range that the profiler sees."""
    kind: str
    shape: tuple[int, ...]
    """Of the weight, as it is stored."""
    m: int
    """Rows of the product for the inputs that were tried: tokens, or batch times output pixels."""
    n: int
    k: int
    reason: Reason | None = None
    """Why no 2:4 kernel takes it; None where one does."""

    @property
    def flops(self) -> int:
        """Two for each multiply-add of the dense product."""
        return 2 * self.m * self.n * self.k


@dataclass(slots=True)
class _Call:
    rows: int = 0
    reason: Reason | None = None


def find_products(module: nn.Module, run: Callable[[nn.Module], object]) -> list[ProductLayer]:
    """List a network's convolutions and matrix products, each with the first structural reason against it.

    Args:
        module: In evaluation mode; it is run once.
        run: Calls it on its inputs.
    """
    calls: dict[str, _Call] = {}
    modules = {name: one for name, one in module.named_modules() if isinstance(one, _KINDS)}
    hooks = []
    for name, one in modules.items():
        watch = _watch_attention if isinstance(one, nn.MultiheadAttention) else _watch_product
        hooks.append(one.register_forward_hook(_recorder(calls, name, watch), with_kwargs=True))
    try:
        with torch.no_grad(), no_fused_attention():
            run(module)
    finally:
        for hook in hooks:
            hook.remove()
    found: list[ProductLayer] = []
    inside_attention = {f"{name}.out_proj" for name, one in modules.items() if isinstance(one, nn.MultiheadAttention)}
    for name, one in modules.items():
        if name not in inside_attention:
            found += _layers_of(name, one, calls.get(name))
    return found


_KINDS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.MultiheadAttention,
)


def _recorder(calls: dict[str, _Call], name: str, watch: Callable[..., _Call]) -> Callable[..., None]:
    def record(_module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
        seen = watch(arguments, keywords, output)
        before = calls.get(name)
        calls[name] = seen if before is None else _Call(before.rows + seen.rows, before.reason or seen.reason)

    return record


def _watch_product(_arguments: Any, _keywords: Any, output: torch.Tensor) -> _Call:
    return _Call(rows=output.numel())


def _watch_attention(arguments: Any, keywords: Mapping[str, Any], output: Any) -> _Call:
    given = dict(
        zip(("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask"), arguments, strict=False)
    )
    given |= keywords
    query = given["query"]
    what = ""
    if given["key"] is not query or given["value"] is not query:
        what = "other keys than queries"
    elif given.get("key_padding_mask") is not None or given.get("attn_mask") is not None or given.get("is_causal"):
        what = "a mask"
    elif given.get("need_weights", True):
        what = "need_weights=True"
    elif query.ndim != 3:
        what = "inputs without a batch"
    return _Call(rows=output[0].numel(), reason=Reason("attention-call", what) if what else None)


def _layers_of(name: str, module: nn.Module, call: _Call | None) -> Iterator[ProductLayer]:
    prefix = f"{name}." if name else ""
    reason = call.reason if call is not None else Reason("never-called")
    if isinstance(module, nn.MultiheadAttention):
        rows = call.rows // module.embed_dim if call is not None else 0
        if module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn:
            reason = reason or Reason("attention-call", "separate key and value sizes, or added keys")
            return
        for part, weight in (("in_proj", module.in_proj_weight), ("out_proj", module.out_proj.weight)):
            parameter = "in_proj_weight" if part == "in_proj" else "out_proj.weight"
            n, k = weight.shape
            yield ProductLayer(
                name=f"{prefix}{parameter}",
                module=f"{prefix}{part}",
                kind=f"attention {part}",
                shape=tuple(weight.shape),
                m=rows,
                n=n,
                k=k,
                reason=reason,
            )
        return
    weight = module.get_parameter("weight")
    if isinstance(module, nn.Linear):
        n, k = weight.shape
        kind = "Linear"
    else:
        kind = type(module).__name__
        n, k = weight.shape[0], math.prod(weight.shape[1:])
        reason = reason or _why_no_product(module)
    yield ProductLayer(
        name=f"{prefix}weight",
        module=name,
        kind=kind,
        shape=tuple(weight.shape),
        m=call.rows // n if call is not None else 0,
        n=n,
        k=k,
        reason=reason,
    )


def _why_no_product(module: nn.Module) -> Reason | None:
    if not isinstance(module, nn.Conv2d):
        return Reason("no-torch-kernel", type(module).__name__)
    if module.groups != 1:
        return Reason("grouped-convolution", str(module.groups))
    if module.kernel_size != (1, 1):
        return Reason("kernel-size", write_sizes(module.kernel_size))
    if module.padding not in (0, (0, 0), "valid", "same"):
        return Reason("padded-convolution", str(module.padding))
    return None


@contextmanager
def no_fused_attention() -> Iterator[None]:
    """Switch off torch's fused encoder layer, which reads weights past the modules that hold them."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def check_weights(layers: Sequence[ProductLayer], module: nn.Module, backend: BackendName) -> list[ProductLayer]:
    """Add the reasons that lie in the weights: pattern, dtype, sizes, device, contiguity.

    Args:
        layers: From `find_products` of the same network.
        module: The network in the dtype and on the device where it would run.
        backend: Whose rules.
    """
    weights = module.state_dict()
    checked = []
    for layer in layers:
        reason = layer.reason
        if reason is None:
            matrix_OI = weights[layer.name].flatten(1)
            violations = count_violations(matrix_OI)
            if violations:
                groups = matrix_OI.shape[0] * -(-matrix_OI.shape[1] // 4)
                zeros = float((matrix_OI == 0).double().mean())
                dense = zeros < _SPARSE_FROM and violations * 2 > groups
                reason = (
                    Reason("dense", f"{100 * zeros:.1f} %", f"{violations} of {groups}")
                    if dense
                    else Reason("broken-pattern", str(violations), str(groups))
                )
            else:
                reason = why_not_eligible(matrix_OI, backend)
        checked.append(replace(layer, reason=reason))
    return checked


def rewrite(module: nn.Module, layers: Sequence[ProductLayer]) -> nn.Module:
    """Copy a network with its eligible products as matrix products; it computes the same, by dense kernels."""
    rewritten = copy.deepcopy(module)
    by_module = {layer.module: layer for layer in layers if layer.reason is None}
    for name, one in list(rewritten.named_modules()):
        if isinstance(one, nn.MultiheadAttention):
            prefix = f"{name}." if name else ""
            if f"{prefix}in_proj" in by_module or f"{prefix}out_proj" in by_module:
                rewritten = _replaced(rewritten, name, SelfAttention(one))
        elif name in by_module and isinstance(one, nn.Conv2d):
            rewritten = _replaced(rewritten, name, PointwiseProduct(one))
        elif name in by_module and type(one) is nn.Linear:
            rewritten = _replaced(rewritten, name, MatrixProduct(one.weight, one.bias))
    return rewritten.eval()


def _replaced(root: nn.Module, name: str, module: nn.Module) -> nn.Module:
    if not name:
        return module
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent), last, module)
    return root


def packer(backend: BackendName) -> Pack:
    """Torch's own compression of a 2:4 weight for one backend, with torch's own defaults.

    Until torch 2.13 one default is that cuSPARSELt's output lies column by column. Fusing the transposition is no way
    out with cuSPARSELt 0.8.0: on an H200 each call then took the host 160 to 195 ms.
    """

    def pack(weight_OI: torch.Tensor) -> torch.Tensor:
        packed: torch.Tensor = tensor_class(backend).from_dense(weight_OI.contiguous())
        return packed

    return pack


def pack_products(module: nn.Module, layers: Sequence[ProductLayer], pack: Pack) -> nn.Module:
    """Copy a rewritten network with its eligible weights packed.

    Args:
        module: From `rewrite`.
        layers: The same that `rewrite` was given.
        pack: From `packer`.
    """
    packed = copy.deepcopy(module)
    for layer in layers:
        if layer.reason is None:
            product = packed.get_submodule(layer.module)
            product.weight = nn.Parameter(pack(product.get_parameter("weight").detach()), requires_grad=False)
    return packed


def module_names(layers: Sequence[ProductLayer]) -> tuple[str, ...]:
    """Modules of all products of a rewritten network, eligible or not."""
    return tuple(layer.module for layer in layers if layer.m)
