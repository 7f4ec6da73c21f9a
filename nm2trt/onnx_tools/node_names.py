"""Names for nodes that have none, as old exporters and many converters leave them."""

from __future__ import annotations

import onnx_ir as ir


def name_nodes(model: ir.Model) -> int:
    """Name every nameless node after its first output, in subgraphs too.

    An engine's layers are told by their nodes' names, so that nothing can be said of a nameless one. Outputs are
    unique within a graph; a name that another node has gets a number behind it.

    Args:
        model: Changed in place.

    Returns:
        How many nodes got a name.
    """
    nodes = list(model.graph.all_nodes())
    taken = {node.name for node in nodes if node.name}
    count = 0
    for number, node in enumerate(nodes):
        if node.name:
            continue
        base = next((str(value.name) for value in node.outputs if value.name), f"{node.op_type}_{number}")
        name, suffix = base, 1
        while name in taken:
            name, suffix = f"{base}_{suffix}", suffix + 1
        taken.add(name)
        node.name = name
        count += 1
    return count
