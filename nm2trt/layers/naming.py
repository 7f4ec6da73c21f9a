"""Tell a layer's weight among a checkpoint's tensors, which have names, shapes and neighbors, but no operators.

Only what the grammar of torch's and Flax's modules knows is a weight: `.weight` of a module, the weights of recurrent
and attention modules, a Flax or Keras `kernel`, and what a mask or the file's own metadata call one. Its neighbors
have a say: a bias tells the axes apart, a bias of the same shape tells a norm, scales and packed values tell a
quantized tensor. Everything else of two and more dimensions is either known to be no weight, or not known.

Shapes follow torch: a linear weight is [out, in], a convolution [out, in / groups, kernel...]; both are reduced along
axis 1. Conv1D of transformers and kernels of Flax and Keras hold [in, out].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from nm2trt.layers.config_json import ModelConfig
from nm2trt.layers.stream import Op
from nm2trt.reasons import Reason

_WEIGHT = re.compile(
    r"^(weight|weight_orig|weight_v|original\d*|weight_(ih|hh|hr)(_l\d+)?(_reverse)?|(in|q|k|v)_proj_weight"
    r"|(bias_)?[kv]_weight)$"
)
_NAMED_WEIGHT = re.compile(r"^(?P<stem>\w*?)_?(?P<word>weights?|w)$", re.I)
"""A weight only with a bias beside it: fc1_weight and fc1_bias, W and b."""
_EMBEDDING = re.compile(
    r"emb(ed)?(ding)?(s|_tokens)?\d*$|embeddings?\d*$|^(wte|wpe|shared|embed_tokens|tok_embeddings)$"
    r"|(^|_)(emb|embed|pos|positions?|positional|tokens?|codebooks?|lut|lookup|vocab|table|queries|pe|pe_[kv])$"
    r"|^(emb|embed|queries)_|embedder$|(attention|position)_bias$",
    re.I,
)
_PRODUCT = re.compile(r"^(linear|lin|proj|fc|conv|dense|to)_|_(out|proj|projection|linear|fc|head)$", re.I)
"""Names of linear layers, whatever else is in them."""
_NORM = re.compile(r"(^|_)(\w*norm\w*|ln\w*|bn\d*|gn\d*)$", re.I)
_COMPANION = re.compile(
    r"(^|_)(scales?|scale_inv|scales?_\d+|zeros?|qzeros|zero_points?|zp|a?max|absmax|quant_map|quant_state\w*|g_idx"
    r"|bitmask|row_offsets|scb|codebooks?|qweight|perm|workspace|scale_packed|weight_packed|weight_shape|meta|trellis"
    r"|su|sv|nf4|fp4|bitsandbytes__\w+)$|scale_inv$|^weight_(scale|zero|shape|packed|format)",
    re.I,
)
_PACKED = re.compile(r"^(qweight|weight_packed|packed_weight|w_q|weight|\w+_blocks)$", re.I)
"""Where integers of other types than int8 hold several weights each: GPTQ, AWQ, Marlin, bitsandbytes, MXFP4, HQQ."""
_QUANTIZER = re.compile(r"(^|_)(quantizers?|fake_quant(ize)?|act(ivation)?_post_process|observer)(_\d+)?$", re.I)
_ADAPTER = re.compile(
    r"^(lora_(a|b|down|up|mid|magnitude_vector|embedding_[ab])|lo(kr|ha)_\w+|hada_w\d_[ab]|ia3_l|oft_r|vera_\w+)$", re.I
)
_OPTIMIZER = re.compile(
    r"^(optim(izer)?s?(_\w+)?|\w+_optim(izer)?s?(_state(_dict)?s?)?|opt_state|adamw?|lr_scheduler\w*|\w*schedulers?"
    r"|grad_scaler|rng_state\w*|exp_avgs?|exp_avg_sqs?|max_exp_avg_sq|momentum(_buffer)?|square_avg"
    r"|acc_delta|grads?|gradients?)$",
    re.I,
)
_TABLE = re.compile(
    r"bias|emb|token|table|running_(mean|var)|num_batches|position|pos_emb|scale|gamma|mask|anchor|inv_freq|rotary"
    r"|freqs|cos|sin|relative|stride|grid|buffer|queue|codebook|cluster|basis|window|filterbank|mel|latents?|a_log|rel_pos|time_(mix|decay|first)",
    re.I,
)
_CONV1D_OWNER = ("c_attn", "c_proj", "c_fc", "q_attn")
_FLOATS = ("float", "bfloat")
_CHECKED_INTEGERS = ("int8",)
_CONV_RANKS = (3, 4, 5)
_LONGEST_KERNEL = 128
"""A 3-D tensor whose last axis is longer is a stack of matrices rather than a 1-D convolution."""


@dataclass(frozen=True, slots=True)
class Guess:
    """Operator and reduction axis of a tensor, or the reason that it is not taken for a weight."""

    op: Op
    reduction_axis: int | None
    reason: Reason | None = None
    unknown: bool = False
    """It may be a weight: `op` and `reduction_axis` hold if the user says so."""
    groups: int = 1


@dataclass(frozen=True, slots=True)
class Neighbors:
    """All tensors of a checkpoint, and what lies beside it."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    known_weights: frozenset[str] = frozenset()
    """Weights by other evidence: a mask beside them, the file's own metadata."""
    config: ModelConfig = field(default_factory=ModelConfig)
    transposed_linears: bool = False
    """Biases of this checkpoint's linear layers say that their weights are [in, out]."""


def transposed_linears(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Ask the biases beside all 2-D weights that are not square: do all of them fit the second axis only?"""
    votes = {_bias_axis(shape, _bias_of(name, shapes)) for name, shape in shapes.items() if len(shape) == 2}
    return votes & {0, 1} == {1}


def guess(name: str, shape: tuple[int, ...], dtype: str, neighbors: Neighbors | None = None) -> Guess:
    """Tell from a tensor's name, shape, stored type and neighbors what reads it."""
    around = neighbors or Neighbors()
    if len(shape) > 1 and "int" in dtype and dtype not in _CHECKED_INTEGERS and _PACKED.match(_last(name)):
        return Guess("other", None, Reason("packed", dtype), unknown=True)
    if reason := _never_a_weight(shape, dtype):
        return Guess("other", None, reason)
    parts = [part for part in re.split(r"[./]", name) if part]
    last = _last(name)
    if reason := _other_role(parts, last):
        return Guess("other", None, reason)
    owner = next((part for part in reversed(parts) if not _is_wrapper(part)), "")
    bias = _bias_of(name, around.shapes)
    if bias is not None and len(bias) > 1 and bias == shape:
        return Guess("other", None, Reason("norm", last))
    if last == "original0" and f"{name[:-1]}1" in around.shapes:
        return Guess("other", None, Reason("magnitude-vector"))
    if last == "kernel":
        return _kernel(shape)
    known = name in around.known_weights or bool(_WEIGHT.match(last))
    if not known and not (_NAMED_WEIGHT.match(last) and bias is not None):
        if _TABLE.search(last):
            return Guess("other", None, Reason("table", last))
        found = _layer(name, owner, shape, bias, around)
        unknown = found.reduction_axis is not None or found.unknown
        reason = Reason("unknown-name", name) if found.reduction_axis is not None else found.reason
        return Guess(found.op, found.reduction_axis, reason, unknown, found.groups)
    if _NORM.search(owner) and (bias is None or len(shape) != 2) and name not in around.known_weights:
        return Guess("other", None, Reason("table", owner))
    return _layer(name, owner, shape, bias, around)


def _last(name: str) -> str:
    return next((part for part in reversed(re.split(r"[./]", name)) if part), "")


def _layer(name: str, owner: str, shape: tuple[int, ...], bias: tuple[int, ...] | None, around: Neighbors) -> Guess:
    if len(shape) == 2:
        return _linear(name, owner, shape, bias, around)
    if len(shape) not in _CONV_RANKS:
        return Guess("other", None, Reason("unknown-rank", str(len(shape))))
    stacked = "expert" in name.lower() or (len(shape) == 3 and shape[-1] > _LONGEST_KERNEL and shape[1] > 1)
    if stacked or (bias is not None and len(bias) > 1):
        return Guess("other", None, Reason("stacked"), unknown=True)
    width = bias[0] if bias else shape[0]
    if width != shape[0] and width % shape[1] == 0:
        # Only a transposed convolution, [in, out / groups, kernel...], has a bias that does not fit the first axis.
        return Guess("conv-transpose", 0, groups=width // shape[1])
    if shape[1] == 1 and shape[0] > 1:
        return Guess("conv", None, Reason("depthwise"))
    return Guess("conv", 1)


def _linear(name: str, owner: str, shape: tuple[int, ...], bias: tuple[int, ...] | None, around: Neighbors) -> Guess:
    config = around.config
    if bias is None and name not in around.known_weights and _is_embedding(owner, shape, config):
        return Guess("embedding", None, Reason("embedding"))
    conv1d_name = owner in _CONV1D_OWNER
    axis = _bias_axis(shape, bias)
    if bias is not None and axis is None and shape[0] != shape[1]:
        return Guess("linear", None, Reason("orientation", str(bias[0])), unknown=True)
    if axis is not None:
        return Guess("linear", 1 - axis)
    transposed = config.conv1d and conv1d_name
    if conv1d_name and not transposed:
        # nanoGPT gives its torch.nn.Linear the same names; only the shapes tell.
        told = _gpt2_shapes(around.shapes)
        if told is None and not around.transposed_linears and bias is None and name not in around.known_weights:
            return Guess("linear", None, Reason("conv1d"), unknown=True)
        transposed = bool(told) or around.transposed_linears
    elif not conv1d_name and bias is not None:
        transposed = around.transposed_linears
    return Guess("linear", 0 if transposed else 1)


def _kernel(shape: tuple[int, ...]) -> Guess:
    """Flax and Keras: Dense [in, out], Conv [kernel..., in / groups, out]."""
    if len(shape) == 2:
        return Guess("linear", 0)
    if len(shape) not in (4, 5):
        return Guess("other", None, Reason("stacked"), unknown=True)
    if shape[-2] == 1:
        return Guess("other", None, Reason("depthwise"))
    return Guess("other", len(shape) - 2)


def _is_embedding(owner: str, shape: tuple[int, ...], config: ModelConfig) -> bool:
    if _EMBEDDING.search(owner) and not _PRODUCT.search(owner):
        return True
    head = re.search(r"head|classifier|logits|score|decoder|out|proj", owner, re.I)
    return shape[0] in config.vocabulary_sizes and shape[0] > shape[1] and not head


def _gpt2_shapes(shapes: Mapping[str, tuple[int, ...]]) -> bool | None:
    """Whether attention's joint projection is [in, 3 * in] and the first of an MLP [in, 4 * in].

    With torch.nn.Linear it is the other way round. None where there are no such layers.
    """
    grown = [
        shape
        for name, shape in shapes.items()
        if name.endswith(("c_attn.weight", "c_fc.weight")) and len(shape) == 2 and shape[0] != shape[1]
    ]
    return all(shape[1] > shape[0] for shape in grown) if grown else None


def _bias_of(name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    head, dot, last = name.rpartition(".") if "." in name else name.rpartition("/")
    candidates = [re.sub("weight", "bias", last)] if "weight" in last else []
    candidates += ["bias"] if last in ("original", "kernel", "weight_orig", "weight_v") else []
    candidates += [re.sub(r"[wW]$", lambda found: "b" if found[0] == "w" else "B", last), "b"] if last in "wW" else []
    for candidate in candidates:
        if candidate != last and (shape := shapes.get(f"{head}{dot}{candidate}")):
            return shape
    return None


def _bias_axis(shape: tuple[int, ...], bias: tuple[int, ...] | None) -> int | None:
    """The axis whose size the bias has, where only one does."""
    if bias is None or len(bias) != 1:
        return None
    fits = [axis for axis in (0, 1) if shape[axis] == bias[0]]
    return fits[0] if len(fits) == 1 else None


def _other_role(parts: list[str], last: str) -> Reason | None:
    """Optimizer state, quantization parameters and adapters, which no name of a module is mistaken for."""
    for part in parts:
        if _OPTIMIZER.match(part):
            return Reason("optimizer", part)
        if _ADAPTER.match(part):
            return Reason("adapter", part)
        if _QUANTIZER.search(part):
            return Reason("companion", part)
    if last == "weight_g":
        return Reason("magnitude-vector")
    return Reason("companion", last) if _COMPANION.search(last) else None


def _never_a_weight(shape: tuple[int, ...], dtype: str) -> Reason | None:
    if len(shape) < 2:
        return Reason("vector" if shape else "scalar")
    if 0 in shape:
        return Reason("empty")
    if not dtype.startswith(_FLOATS) and dtype not in _CHECKED_INTEGERS:
        return Reason("dtype", dtype)
    return None


def _is_wrapper(part: str) -> bool:
    is_weight = _WEIGHT.match(part) or part == "kernel"
    return bool(is_weight) or part in {"parametrizations", "base_layer", "module"} or part.isdigit()
