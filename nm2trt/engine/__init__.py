"""ONNX -> TensorRT and TensorRT-RTX engines, and what their builds prove."""

from nm2trt.engine.builders import (
    AUTO,
    BUILDER_CHOICES,
    Availability,
    Chosen,
    EngineBuilder,
    TensorrtBuilder,
    TensorrtRtxBuilder,
    choose_builder,
    known_builders,
)
from nm2trt.engine.evidence import chosen_fact, faster_fact, legal_nodes, read_evidence
from nm2trt.engine.job import Backend, BuildProgress, EngineJob, RefitJob, WorkerAnswer
from nm2trt.engine.ort_session import OrtSessionDocument, ort_session, renew_engine_cache
from nm2trt.engine.plans import PlanComparison, compare_plans
from nm2trt.engine.process import run_probe, run_refit
from nm2trt.engine.refit import Refitter, check_pattern, check_same_graph
from nm2trt.engine.settings import EngineSettings
from nm2trt.engine.variants import Network, build_variants, check_settings

__all__ = [
    "AUTO",
    "BUILDER_CHOICES",
    "Availability",
    "Backend",
    "BuildProgress",
    "Chosen",
    "EngineBuilder",
    "EngineJob",
    "EngineSettings",
    "Network",
    "OrtSessionDocument",
    "PlanComparison",
    "RefitJob",
    "Refitter",
    "TensorrtBuilder",
    "TensorrtRtxBuilder",
    "WorkerAnswer",
    "build_variants",
    "check_pattern",
    "check_same_graph",
    "check_settings",
    "choose_builder",
    "chosen_fact",
    "compare_plans",
    "faster_fact",
    "known_builders",
    "legal_nodes",
    "ort_session",
    "read_evidence",
    "renew_engine_cache",
    "run_probe",
    "run_refit",
]
