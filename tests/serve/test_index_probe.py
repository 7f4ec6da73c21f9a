"""Integers that a network takes, found by running it, and servers that are wrong for some of them."""

import numpy as np
import onnx
import pytest
from faulty_server import MODEL, http_server
from helpers import nm2trt_inline
from onnx import TensorProto, helper, numpy_helper
from serve_builds import write_build

from nm2trt.artifacts import BuildDocument
from nm2trt.serve.draw import InputRange
from nm2trt.serve.index_probe import probe_ranges
from nm2trt.serve.reference import Reference, read_limits
from nm2trt.serve.samples import choose_samples, free_size_choices, one_feed

INT64, INT32, FLOAT = TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT
node = helper.make_node


def subgraph():
    """Ids are looked up in the branch of an If."""
    value = helper.make_tensor_value_info("looked", FLOAT, ["N", 3, 2])
    branches = [
        helper.make_graph([node("Gather", ["table", "handed"], ["looked"])], name, [], [value])
        for name in ("then", "else")
    ]
    return [
        node("Mul", ["ids", "one"], ["handed"]),
        node("If", ["yes"], ["a"], then_branch=branches[0], else_branch=branches[1]),
    ]


def offset_columns():
    return [node("Add", ["ids", "offsets"], ["at"]), node("Gather", ["table", "at"], ["a"])]


def column_tables():
    nodes = []
    for at, table in enumerate(("small", "table", "middle")):
        nodes += [node("Gather", ["ids", f"c{at}"], [f"i{at}"], axis=1), node("Gather", [table, f"i{at}"], [f"e{at}"])]
    return [*nodes, node("Concat", ["e0", "e1", "e2"], ["a"], axis=1)]


def split_tables():
    nodes = [node("Split", ["ids", "ones"], ["i0", "i1", "i2"], axis=1)]
    nodes += [node("Gather", [table, f"i{at}"], [f"e{at}"]) for at, table in enumerate(("table", "small", "table"))]
    return [*nodes, node("Concat", ["e0", "e1", "e2"], ["a"], axis=1)]


def twice():
    return [node("Mul", ["ids", "two"], ["at"]), node("Gather", ["table", "at"], ["a"])]


def gather_nd():
    return [node("Unsqueeze", ["ids", "last"], ["at"]), node("GatherND", ["table", "at"], ["a"])]


def hashed():
    return [node("Mod", ["ids", "rows"], ["at"]), node("Gather", ["table", "at"], ["a"])]


def by_floats():
    nodes = [node("Cast", ["ids"], ["f"], to=FLOAT), node("Floor", ["f"], ["g"]), node("Cast", ["g"], ["at"], to=INT64)]
    return [*nodes, node("Gather", ["table", "at"], ["a"])]


NETWORKS = {
    "twice": (twice(), (20,)),
    "gather_nd": (gather_nd(), (40,)),
    "by floats": (by_floats(), (40,)),
    "hashed": (hashed(), (40,)),
    "subgraph": (subgraph(), (40,)),
    "offset columns": (offset_columns(), (40, 36, 24)),
    "column tables": (column_tables(), (4, 40, 13)),
    "split tables": (split_tables(), (40, 4, 40)),
}  # fmt: skip
"""Nodes that make a of ids [N, 3]; rows that its columns may name."""


def network(nodes, *, kind=INT64, seed=0):
    """ids [N, 3] -> a; tables of 4, 13 and 40 rows, of which those from 2 on depend on the seed."""
    rng = np.random.default_rng(5)
    rows = {"small": 4, "middle": 13, "table": 40}
    tables = {name: rng.standard_normal((size, 2)).astype("f4") for name, size in rows.items()}
    if seed:
        tables["table"][30:] = np.random.default_rng(seed).standard_normal((10, 2))
    constants = {
        "one": np.array(1, np.int64), "rows": np.array(40, np.int64), "two": np.array(2, np.int64),
        "last": np.array([2], np.int64),
        "yes": np.array(True), "offsets": np.array([0, 4, 16], np.int64), "ones": np.array([1, 1, 1], np.int64),
        **{f"c{at}": np.array(at, np.int64) for at in range(3)},
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", kind, ["N", 3])],
        [helper.make_tensor_value_info("a", FLOAT, ["N", None, 2] if "e0" not in str(nodes) else ["N", None])],
        [numpy_helper.from_array(value, name) for name, value in {**tables, **constants}.items()],
    )
    used = {name for one in nodes for name in one.input} | {"table"}
    kept = [one for one in graph.initializer if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    graph.output[0].CopyFrom(helper.make_empty_tensor_value_info("a"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    inferred = onnx.shape_inference.infer_shapes(model)
    model.graph.output[0].CopyFrom(inferred.graph.output[0])
    return model


def ranges_of(folder):
    build, file = BuildDocument.read(folder), folder / "model.onnx"
    limits = read_limits(file)
    return build, file, probe_ranges(build.inputs, file, limits, one_feed(build, limits, free_size_choices(build)[0]))


@pytest.mark.parametrize("case", NETWORKS)
def test_every_row_that_can_be_reached_is_asked_for(tmp_path, case):
    nodes, below = NETWORKS[case]
    build, file, ranges = ranges_of(write_build(tmp_path / "build", network(nodes)))
    found = ranges["ids"]
    assert (found if isinstance(found, int) else found.below) in (below, below[0])
    samples = choose_samples(build, ranges)
    (group,) = samples.groups
    drawn = np.concatenate([group.feed(at)["ids"] for at in range(group.count)])
    for column, rows in enumerate(below if len(below) > 1 else below * 3):
        assert set(drawn[:, column].tolist()) <= set(range(rows))
        if len(below) > 1:
            assert set(drawn[:, column].tolist()) == set(range(rows))
    assert len(below) > 1 or set(drawn.ravel().tolist()) == set(range(below[0]))
    reference = Reference(file)
    for at in range(group.count):
        reference.run(group.feed(at))


@pytest.mark.parametrize("case", NETWORKS)
def test_a_server_with_other_rows_is_found_out(tmp_path, case):
    nodes = NETWORKS[case][0]
    build = write_build(tmp_path / "build", network(nodes))
    other = write_build(tmp_path / "other", network(nodes, seed=1))
    for folder, expected in ((build, 0), (other, 1)):
        with http_server(folder / "model.onnx", "ok") as url:
            result = nm2trt_inline(
                "check-server", f"http://{url}", MODEL, "--build", build, "--protocol", "http", "--no-load"
            )
        assert result.returncode == expected, result.stderr


def probed(tmp_path, nodes, inputs, constants):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info("a", FLOAT, ["N", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return ranges_of(write_build(tmp_path / "build", model))


def test_a_plain_number_is_no_index(tmp_path):
    nodes = [node("Cast", ["age"], ["a"], to=FLOAT)]
    build, _, ranges = probed(tmp_path, nodes, [("age", INT32, ["N", 2])], {})
    assert ranges == {"age": InputRange(below=(), low=0)}
    (group,) = choose_samples(build, ranges).groups
    assert group.arrays["age"].max() > 10
    assert group.arrays["age"][0].max() <= 1


def test_a_divisor_is_never_zero(tmp_path):
    """An integer division by zero ends the process, not the request."""
    nodes = [node("Div", ["x", "stride"], ["q"]), node("Cast", ["q"], ["a"], to=FLOAT)]
    inputs = [("x", INT64, ["N", 2]), ("stride", INT64, ["N", 2])]
    build, file, ranges = probed(tmp_path, nodes, inputs, {})
    assert ranges["stride"] == InputRange(below=(), low=1)
    (group,) = choose_samples(build, ranges).groups
    assert group.arrays["stride"].min() == 1
    reference = Reference(file)
    for at in range(group.count):
        reference.run(group.feed(at))


def test_masks_and_lengths_are_left_to_their_names(tmp_path):
    nodes = [node("Mul", ["attention_mask", "seq_len"], ["m"]), node("Cast", ["m"], ["a"], to=FLOAT)]
    inputs = [("attention_mask", INT64, ["N", 2]), ("seq_len", INT64, ["N", 1])]
    assert probed(tmp_path, nodes, inputs, {})[2] == {}


def test_a_value_that_is_a_size_costs_no_memory(tmp_path):
    """The network makes a tensor as large as the value says; larger ones than the limit allows are refused."""
    nodes = [
        node("Concat", ["million", "size"], ["shape"], axis=0),
        node("ConstantOfShape", ["shape"], ["zeros"]),
        node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        node("Add", ["x", "sum"], ["a"]),
    ]
    inputs = [("x", FLOAT, ["N", 2]), ("size", INT64, [1])]
    _, _, ranges = probed(tmp_path, nodes, inputs, {"million": np.array([10**6])})
    found = ranges.get("size", 0)
    assert isinstance(found, int) or found.rows < 8000


def test_two_inputs_that_are_added_are_tried_one_after_the_other(tmp_path):
    """Each by itself may name every row, both at their ends no row."""
    for seed, expected in ((0, 0), (1, 1)):
        table = np.random.default_rng(5).standard_normal((40, 2)).astype("f4")
        table[30:] += seed
        nodes = [node("Add", ["ids", "shift"], ["at"]), node("Gather", ["table", "at"], ["a"])]
        inputs = [helper.make_tensor_value_info(name, INT64, ["N"]) for name in ("ids", "shift")]
        graph = helper.make_graph(
            nodes, "g", inputs, [helper.make_tensor_value_info("a", FLOAT, ["N", 2])],
            [numpy_helper.from_array(table, "table")],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        folder = write_build(tmp_path / f"build{seed}", model)
        with http_server(folder / "model.onnx", "ok") as url:
            result = nm2trt_inline(
                "check-server",
                f"http://{url}",
                MODEL,
                "--build",
                tmp_path / "build0",
                "--protocol",
                "http",
                "--no-load",
            )
        assert result.returncode == expected, result.stderr
