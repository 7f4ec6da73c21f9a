"""Run, build and report folders: how they are written, what proves their contents, how they are read back."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nm2trt.artifacts.build import (
        VARIANTS,
        BatchRange,
        BuildDocument,
        BuildSource,
        EngineRecord,
        GraphPort,
        NumericsRecord,
        Variant,
    )
    from nm2trt.artifacts.demo import DemoDocument, DemoRow
    from nm2trt.artifacts.document import Document
    from nm2trt.artifacts.engine_trust import check_plan, this_platform
    from nm2trt.artifacts.facts import Fact, Facts, FactState
    from nm2trt.artifacts.files import FileRecord, file_records, sha256_of, staged_folder, write_atomic
    from nm2trt.artifacts.host import HostRecord, host_record
    from nm2trt.artifacts.layer_evidence import LayerEvidence
    from nm2trt.artifacts.names import ONNX_FILE
    from nm2trt.artifacts.report import (
        BatchRecord,
        NetworkRecord,
        ProtocolRecord,
        RatioRecord,
        ReportDocument,
        RunnerRecord,
        VariantRecord,
    )
    from nm2trt.artifacts.run import (
        LayerRecord,
        ModelRecord,
        RunDocument,
        RunResult,
        SadTotals,
        SessionRecord,
        ThreadsRecord,
    )

__all__ = [
    "ONNX_FILE",
    "VARIANTS",
    "BatchRange",
    "BatchRecord",
    "BuildDocument",
    "BuildSource",
    "DemoDocument",
    "DemoRow",
    "Document",
    "EngineRecord",
    "Fact",
    "FactState",
    "Facts",
    "FileRecord",
    "GraphPort",
    "HostRecord",
    "LayerEvidence",
    "LayerRecord",
    "ModelRecord",
    "NetworkRecord",
    "NumericsRecord",
    "ProtocolRecord",
    "RatioRecord",
    "ReportDocument",
    "RunDocument",
    "RunResult",
    "RunnerRecord",
    "SadTotals",
    "SessionRecord",
    "TeacherRecord",
    "ThreadsRecord",
    "Variant",
    "VariantRecord",
    "check_plan",
    "file_records",
    "host_record",
    "sha256_of",
    "staged_folder",
    "this_platform",
    "write_atomic",
]

_HOMES = {
    "build": (
        "VARIANTS",
        "Variant",
        "BatchRange",
        "BuildDocument",
        "BuildSource",
        "EngineRecord",
        "GraphPort",
        "NumericsRecord",
    ),
    "demo": ("DemoDocument", "DemoRow"),
    "document": ("Document",),
    "facts": ("Fact", "Facts", "FactState"),
    "files": ("FileRecord", "file_records", "sha256_of", "staged_folder", "write_atomic"),
    "host": ("HostRecord", "host_record"),
    "layer_evidence": ("LayerEvidence",),
    "names": ("ONNX_FILE",),
    "engine_trust": ("check_plan", "this_platform"),
    "report": (
        "VariantRecord",
        "BatchRecord",
        "NetworkRecord",
        "ProtocolRecord",
        "RatioRecord",
        "ReportDocument",
        "RunnerRecord",
    ),
    "run": (
        "LayerRecord",
        "ModelRecord",
        "RunDocument",
        "RunResult",
        "SadTotals",
        "SessionRecord",
        "TeacherRecord",
        "ThreadsRecord",
    ),
}


def __getattr__(name: str) -> Any:
    # Building every stage's pydantic models takes longer than most checkpoints take to judge.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"nm2trt.artifacts.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
