"""An ONNX graph cut into pieces that ONNX Runtime runs, with weights that are replaced as pruning goes on.

A piece is the fewest nodes between tensors that are known and tensors that are wanted. So the network need not run
from its start for every layer: what lies between two layers runs once (`activations.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from nm2trt.errors import InputError
from nm2trt.layers.onnx_reader import open_graph
from nm2trt.library_errors import one_line
from nm2trt.onnx_tools.convert_precision import convert
from nm2trt.onnx_tools.writing import weights_size_bytes
from nm2trt.ort import open_session, run_session

Array = NDArray[Any]
Feed = dict[str, Array]

QUANTIZED_OPERATORS = frozenset(
    (
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "QGemm"),
        *("ConvInteger", "MatMulInteger"),
    )
)
_LARGEST_BYTES = 2**31 - 2**20


class RunnableGraph:
    """The main graph of a model: functions inlined, constants as initializers, bfloat16 computed in float32.

    Args:
        path: An ONNX file. Nothing is written to it.

    Raises:
        InputError: It is no ONNX model, is quantized, or its weights cannot be read.
    """

    def __init__(self, path: Path) -> None:
        from onnx_ir.passes.common import LiftConstantsToInitializersPass, ShapeInferencePass

        self.path = path
        model = open_graph(path).model
        _refuse_quantized(model, path)
        if weights_size_bytes(model) > _LARGEST_BYTES:
            raise InputError(
                "is larger than 2 GiB with its weights, which ONNX Runtime takes in one piece",
                where=path,
                hint="prune it without data",
            )
        try:
            ir.external_data.load_to_model(model)
            LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
            self.narrow = any(value.dtype == ir.DataType.BFLOAT16 for value in _values(model))
            if self.narrow:
                # ONNX Runtime's CPU has no kernels for it.
                ShapeInferencePass()(model)
                convert(model, "fp32", source="bf16", io_dtype="same")
            self._model: onnx.ModelProto = ir.to_proto(model)
        except InputError:
            raise
        except Exception as error:  # noqa: BLE001 -- whatever missing or broken external data make the library raise
            raise InputError(f"its weights cannot be read: {one_line(error)}", where=path) from None
        self.nodes: list[onnx.NodeProto] = list(self._model.graph.node)
        self._weights = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self.inputs = [value.name for value in self._model.graph.input if value.name not in self._weights]
        self._reads = [_names_read(node) for node in self.nodes]
        self.producers = {name: index for index, node in enumerate(self.nodes) for name in node.output if name}

    def weight(self, name: str) -> Array:
        """An initializer's values as they are now.

        Raises:
            KeyError: There is none of that name.
        """
        return np.asarray(numpy_helper.to_array(self._weights[name]))

    def is_weight(self, name: str) -> bool:
        """Whether a name is an initializer."""
        return name in self._weights

    def replace(self, name: str, values: Array) -> None:
        """Put new values into an initializer, in the type in which it is computed."""
        kept = self.weight(name)
        self._weights[name].CopyFrom(numpy_helper.from_array(values.astype(kept.dtype).reshape(kept.shape), name))

    def readers(self, name: str) -> list[int]:
        """Indices of the nodes that read a tensor, also in their bodies."""
        return [index for index, names in enumerate(self._reads) if name in names]

    def needed(self, targets: Iterable[str], known: Collection[str] = ()) -> set[int]:
        """Indices of the nodes between known tensors and the targets."""
        found: set[int] = set()
        pending = [name for name in targets if name not in known]
        while pending:
            index = self.producers.get(pending.pop())
            if index is None or index in found:
                continue
            found.add(index)
            pending += [name for name in self._reads[index] if name not in known]
        return found

    def frontier(self, at: int, targets: Iterable[str]) -> list[str]:
        """Tensors known before node `at` that it or a later node on the way to the targets reads."""
        wanted = tuple(targets)
        nodes = self.needed(wanted)
        read = {name for index in nodes if index >= at for name in self._reads[index]} | set(wanted)
        before = [name for name in self.inputs if name in read]
        return before + [name for name, index in self.producers.items() if index < at and name in read]

    def piece(self, known: Mapping[str, Array], targets: Sequence[str]) -> onnx.ModelProto:
        """The model that computes the targets from known tensors, whose types are taken from their arrays."""
        indices = sorted(self.needed(targets, known))
        read = {name for index in indices for name in self._reads[index]}
        made = {name for index in indices for name in self.nodes[index].output}
        feeds = [name for name in known if name in read and name not in made]
        graph = helper.make_graph(
            [self.nodes[index] for index in indices],
            "piece",
            [_untyped_shape(name, known[name]) for name in feeds],
            [onnx.ValueInfoProto(name=name) for name in targets],
            [tensor for name, tensor in self._weights.items() if name in read],
        )
        return helper.make_model(graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version)

    def model(self) -> onnx.ModelProto:
        """The whole model with its weights as they are now; shared with this object."""
        return self._model

    def session(self, known: Mapping[str, Array], targets: Sequence[str]) -> PieceSession:
        """Open the piece between known tensors and the targets; errors as `PieceSession`."""
        computed = [name for name in targets if name not in known]
        return PieceSession(self.piece(known, computed) if computed else None, computed, self.path)


class PieceSession:
    """A piece of a graph, ready to run.

    Raises:
        InputError: ONNX Runtime refuses it.
    """

    def __init__(self, model: onnx.ModelProto | None, targets: Sequence[str], where: Path) -> None:
        self._targets, self._where = list(targets), where
        # Without the arena, which keeps what was freed.
        self._session = None if model is None else open_session(model.SerializeToString(), where=where, arena=False)
        self._feeds = [] if self._session is None else [port.name for port in self._session.get_inputs()]

    def run(self, known: Mapping[str, Array]) -> Feed:
        """Compute the targets of one batch.

        Raises:
            InputError: ONNX Runtime refuses the batch.
        """
        if self._session is None:
            return {}
        found = run_session(self._session, {name: known[name] for name in self._feeds}, where=self._where)
        return {name: found[name] for name in self._targets}


def _refuse_quantized(model: ir.Model, path: Path) -> None:
    found = [node for node in model.graph.all_nodes() if node.op_type in QUANTIZED_OPERATORS]
    if found:
        first = found[0]
        raise InputError(
            f"is quantized: {len(found)} nodes, first {first.op_type} {first.name or first.outputs[0].name!r}; what "
            "stays of its weights could not make up for the rest",
            where=path,
            hint="prune the float network with data, then quantize it with `nm2trt calibrate`",
        )


def _values(model: ir.Model) -> Iterable[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph.all_nodes():
        yield from node.outputs


def _names_read(node: onnx.NodeProto) -> frozenset[str]:
    """Names that a node reads, its bodies included; names made inside a body are harmless extras."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
            names |= {name for inner in graph.node for name in _names_read(inner)}
            names |= {value.name for value in graph.output}
    return frozenset(names)


def _untyped_shape(name: str, array: Array) -> onnx.ValueInfoProto:
    """A graph input of any shape."""
    kind = helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype)
    return onnx.ValueInfoProto(name=name, type=onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=kind)))
