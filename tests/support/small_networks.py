"""Small ONNX networks and hand-made build folders for tests; imported as `from small_networks import ...`."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from nm2trt.artifacts import (
    BatchRange,
    BuildDocument,
    BuildSource,
    EngineRecord,
    Fact,
    Facts,
    FactState,
    FileRecord,
    GraphPort,
    NumericsRecord,
    host_record,
    sha256_of,
)


def keep_two_of_four(w_OIHW):
    """Prune by a plain loop over groups of four input channels."""
    pruned = w_OIHW.copy()
    out, channels, rows, columns = pruned.shape
    for o in range(out):
        for i in range(0, channels, 4):
            for y in range(rows):
                for x in range(columns):
                    group = pruned[o, i : i + 4, y, x]
                    for weakest in sorted(range(len(group)), key=lambda at: abs(group[at]))[:2]:
                        group[weakest] = 0
    return pruned


def small_network(
    *, seed=0, sparse=False, dtype=np.float32, prefix="", kernel=3, channels=8, batch="N", tail=(), width=6
):
    """Conv, Relu, Conv, Relu, GlobalAveragePool on [N, 4, 6, 6]; `prefix` renames every tensor."""
    rng = np.random.default_rng(seed)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    constants, nodes, last, size = [], [], f"{prefix}x", 4
    for index in range(2):
        w_OIHW = rng.standard_normal((channels, size, kernel, kernel)).astype(dtype)
        name = f"{prefix}w{index}"
        constants.append(numpy_helper.from_array(keep_two_of_four(w_OIHW) if sparse else w_OIHW, name))
        convolved, last_ = f"{prefix}c{index}", f"{prefix}r{index}"
        nodes.append(helper.make_node("Conv", [last, name], [convolved], pads=[kernel // 2] * 4))
        nodes.append(helper.make_node("Relu", [convolved], [last_]))
        last, size = last_, channels
    for index, op in enumerate(tail):
        nodes.append(helper.make_node(op, [last], [f"{prefix}t{index}"]))
        last = f"{prefix}t{index}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], [f"{prefix}y"]))
    graph = helper.make_graph(
        nodes,
        f"{prefix}graph",
        [helper.make_tensor_value_info(f"{prefix}x", kind, [batch, 4, width, width])],
        [helper.make_tensor_value_info(f"{prefix}y", kind, [batch, channels, 1, 1])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def fact(state, evidence):
    return Fact(state=FactState(state), evidence=evidence)


def build_document(model_file, *, name="small", engine_error=None):
    """A build.json as `nm2trt export` would write it for `model_file`."""
    layers = [
        {
            "name": f"{name}.conv{index}.weight",
            "op": "conv",
            "shape": [8, 4, 3, 3],
            "dtype": "float32",
            "axis": 1,
            "pattern": "2:4",
            "verdict": verdict,
            "groups": 72,
            "violations": violations,
            "first_violation": None,
            "density": 0.5,
            "tensorrt": "eligible",
        }
        for index, (verdict, violations) in enumerate([("conforms", 0), ("violates", 3)])
    ]
    engine = EngineRecord(
        variant="sparse",
        file=None if engine_error else "sparse.plan",
        builder="tensorrt-rtx",
        builder_version="1.4",
        sm="80",
        flags=["SPARSE_WEIGHTS"],
        sha256=None if engine_error else "0" * 64,
        size_bytes=None if engine_error else 123456,
        seconds=1.5,
        log="sparse.log",
        error=engine_error,
    )
    return BuildDocument(
        source=BuildSource(kind="run", name=name, sha256="1" * 64, method="sr-ste", pattern="2:4", data="digits"),
        precision="fp32",
        opset=17,
        exporter="torch 2.14",
        batch=BatchRange(min=1, opt=8, max=64),
        io_dtype="fp32",
        inputs=(GraphPort(name="x", dtype="float32", shape=("N", 4, 6, 6)),),
        outputs=(GraphPort(name="y", dtype="float32", shape=("N", 8, 1, 1)),),
        numerics=NumericsRecord(
            reference="torch",
            inputs="digits",
            samples=16,
            batches=(1, 8),
            max_abs_error=1e-6,
            max_abs_error_at="sample 3, output 1: 0.25 against 0.250001",
            max_rel_error=2e-6,
            tolerance=1e-4,
            argmax_agreement=1.0,
            passed=True,
        ),
        pattern={"source": "model.onnx", "pattern": "2:4", "verdict": "fail", "layers": layers, "totals": {}},
        engines=[engine],
        engines_note="compiles for SM80; sparsity not observable",
        facts=Facts(
            legal=fact("proved", "2 of 2 layers conform"),
            eligible=fact("proved", "2 layers"),
            chosen=fact("unknown", "no GPU"),
            faster=fact("unknown", "not measured"),
        ),
        verdict="pass",
        files={"model.onnx": FileRecord(sha256=sha256_of(model_file), size_bytes=model_file.stat().st_size)},
        host=host_record(),
    )


def build_folder(folder, model, **options):
    """Write a build folder that is in order."""
    folder.mkdir()
    onnx.save(model, folder / "model.onnx")
    build_document(folder / "model.onnx", **options).write(folder)
    return folder
