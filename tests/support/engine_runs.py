"""Runs a plan on the GPU, for tests; the plan passes the gate first, and host code stays disallowed."""

import os
import shutil
from pathlib import Path

EVIDENCE_VARIABLE = "NM2TRT_GPU_EVIDENCE"
"""Folder that tests on a GPU leave their builds' evidence in; `make test-gpu` sets it."""


def run_plan(folder, variant, feeds, rebuild=0):
    """Outputs by name, as float32 arrays; `feeds` are arrays by input name."""
    import tensorrt as trt
    import torch

    from nm2trt.artifacts import check_plan, this_platform

    major, minor = torch.cuda.get_device_capability()
    path = check_plan(
        Path(folder),
        variant,
        tensorrt_version=trt.__version__,
        sm=f"{major}{minor}",
        platform=this_platform(),
        rebuild=rebuild,
    )
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    runtime.engine_host_code_allowed = False
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    assert engine is not None, path
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    buffers = {}
    for name in names:
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            buffers[name] = torch.from_numpy(feeds[name]).to(_torch_dtype(engine, name)).cuda().contiguous()
            assert context.set_input_shape(name, tuple(buffers[name].shape)), name
    outputs = [name for name in names if name not in buffers]
    for name in outputs:
        shape = tuple(context.get_tensor_shape(name))
        buffers[name] = torch.empty(shape, dtype=_torch_dtype(engine, name), device="cuda")
    for name, buffer in buffers.items():
        context.set_tensor_address(name, buffer.data_ptr())
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    assert context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    return {name: buffers[name].float().cpu().numpy() for name in outputs}


def _torch_dtype(engine, name):
    import tensorrt as trt
    import torch

    kinds = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT32": torch.int32,
             "INT64": torch.int64, "INT8": torch.int8, "BOOL": torch.bool}  # fmt: skip
    found = engine.get_tensor_dtype(name)
    return next(kinds[key] for key, value in trt.DataType.__members__.items() if value == found and key in kinds)


def keep_evidence(folder, name):
    """Copy what a build says of itself to where `make test-gpu` collects it; plans and weights stay."""
    target = os.environ.get(EVIDENCE_VARIABLE)
    if target is None:
        return
    kept = Path(target) / name
    kept.mkdir(parents=True, exist_ok=True)
    for path in Path(folder).iterdir():
        if path.suffix in (".json", ".log"):
            shutil.copy(path, kept / path.name)
