"""New weights for an engine: the guard that comes first, and the refit itself, in a process of its own.

TensorRT refuses dense weights for a layer whose sparse kernel was chosen, but only while it refits, and by a line in
its log. The guard checks the new network before the engine is touched, and names the group that breaks the rule.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from nm2trt.engine.evidence import legal_nodes
from nm2trt.engine.job import RefitJob, WorkerAnswer
from nm2trt.errors import InputError
from nm2trt.onnx_tools.graph_compare import find_difference
from nm2trt.onnx_tools.lazy_file import read_model
from nm2trt.verify import ELIGIBLE, CheckResult, verify_path


class Refitter(Protocol):
    """Puts the weights of an ONNX file into a plan."""

    def __call__(self, job: RefitJob) -> WorkerAnswer:
        """Write the new plan; the answer's `error` is set where TensorRT refused.

        Raises:
            OSError: The new plan cannot be written.
        """
        ...


def check_same_graph(old: Path, new: Path) -> None:
    """Refuse a network whose weights have no place in the engine.

    Args:
        old: ONNX file that the engine was built from.
        new: ONNX file with the new weights.

    Raises:
        InputError: Nodes, their order, or names, shapes or types of weights differ.
    """
    difference = find_difference(read_model(new), read_model(old), words=("it", "the engine's network"), names="all")
    if difference:
        raise InputError(
            f"is another network than the engine's: {difference}",
            where=new.name,
            hint="refit takes other weights for the same graph; for another graph, export again",
        )


def check_pattern(old: Path, new: Path) -> CheckResult:
    """Refuse weights that break the pattern which the engine's kernels may rely on.

    Args:
        old: ONNX file that the engine was built from.
        new: ONNX file with the new weights.

    Returns:
        verify's findings on the new file.

    Raises:
        InputError: A layer that was eligible for a sparse kernel is no longer; names the first and its first bad group.
    """
    eligible = {node for node, found in legal_nodes(verify_path(old)).items() if found == ELIGIBLE}
    checked = verify_path(new)
    broken = [
        layer for layer in checked.layers if not layer.is_eligible and eligible.intersection(layer.node.split(", "))
    ]
    if broken:
        first = broken[0]
        group = first.first_violation
        at = f", group at {list(group.index)} along axis {first.axis}: {_values(group.values)}" if group else ""
        raise InputError(
            f"{len(broken)} of {len(eligible)} layers whose kernels may rely on 2:4 would lose it; first {first.name}: "
            f"{first.tensorrt}{at}",
            where=new.name,
            hint="train or prune it to 2:4 first; the engine was not touched",
        )
    return checked


def _values(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
