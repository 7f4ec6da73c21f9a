import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve_builds import needs_client

from nm2trt.artifacts import BatchRange, GraphPort
from nm2trt.serve.config_pbtxt import ModelSpec, config_pbtxt, tuned_batches

pytestmark = needs_client


def parse(text):
    """Triton's own reader."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(text, model_config_pb2.ModelConfig())


def spec(**changes):
    values = {
        "name": "net",
        "platform": "tensorrt_plan",
        "inputs": (GraphPort(name="x", dtype="float32", shape=("N", 3, 8, 8)),),
        "outputs": (GraphPort(name="y", dtype="float16", shape=("N", 10)),),
        "batch": BatchRange(min=1, opt=8, max=32),
        "max_batch": 32,
        "queue_delay_us": 500,
        "precision": "fp16",
        "gpu": True,
        "cuda_graphs": True,
        "plans_by_sm": {"80": "model.plan"},
    }
    return ModelSpec(**{**values, **changes})


def test_a_plan_with_a_dynamic_batch():
    config = parse(config_pbtxt(spec(instances=2, labels=True)))
    assert (config.name, config.platform, config.backend, config.max_batch_size) == ("net", "tensorrt_plan", "", 32)
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [("x", 11, [3, 8, 8])]
    assert [(one.name, one.data_type, list(one.dims)) for one in config.output] == [("y", 10, [10])]
    assert config.output[0].label_filename == "labels.txt"
    boxes = GraphPort(name="boxes", dtype="float32", shape=("N", 4))
    outputs = parse(config_pbtxt(spec(labels=True, outputs=(*spec().outputs, boxes)))).output
    assert [one.label_filename for one in outputs] == ["labels.txt", ""]
    assert config.default_model_filename == "model.plan"
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert not config.dynamic_batching.preferred_batch_size
    group = config.instance_group[0]
    assert (group.count, group.Kind.Name(group.kind)) == (2, "KIND_GPU")
    graphs = config.optimization.cuda
    assert graphs.graphs
    assert [one.batch_size for one in graphs.graph_spec] == [1, 8, 32]
    assert list(graphs.graph_spec[1].input["x"].dim) == [3, 8, 8]
    assert [one.batch_size for one in config.model_warmup] == [1, 8, 32]
    assert list(config.model_warmup[0].inputs["x"].dims) == [3, 8, 8]
    assert config.version_policy.latest.num_versions == 2


def test_plans_for_several_gpus():
    config = parse(config_pbtxt(spec(plans_by_sm={"80": "model.sm80.plan", "120": "model.sm120.plan"})))
    assert dict(config.cc_model_filenames) == {"8.0": "model.sm80.plan", "12.0": "model.sm120.plan"}
    assert config.default_model_filename == ""


def test_fixed_shapes_are_not_batched():
    port = GraphPort(name="x", dtype="int64", shape=(4, 16))
    config = parse(config_pbtxt(spec(inputs=(port,), outputs=(port,), batch=None, max_batch=0)))
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [4, 16]
    assert not config.HasField("dynamic_batching")
    assert not config.optimization.cuda.graph_spec
    assert [one.batch_size for one in config.model_warmup] == [0]


def test_onnx_runtime_with_tensorrt_inside():
    key = "0123456789abcdef" * 4
    config = parse(config_pbtxt(spec(platform="onnxruntime", plans_by_sm={}, max_batch=16, engine_key=key)))
    assert (config.backend, config.platform) == ("onnxruntime", "")
    (provider,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert provider.name == "tensorrt"
    options = dict(provider.parameters)
    assert options["trt_sparsity_enable"] == "1"
    assert options["trt_engine_cache_enable"] == "1"
    assert options["trt_engine_cache_path"] == "/tmp/nm2trt-engines-net-0123456789abcdef"
    assert options["precision_mode"] == "FP16"
    assert options["trt_profile_min_shapes"] == "x:1x3x8x8"
    assert options["trt_profile_opt_shapes"] == "x:8x3x8x8"
    assert options["trt_profile_max_shapes"] == "x:16x3x8x8"


@pytest.mark.parametrize("platform", ["onnxruntime", "python"])
def test_on_a_cpu_nothing_of_a_gpu_is_asked_for(platform):
    config = parse(config_pbtxt(spec(platform=platform, gpu=False, plans_by_sm={})))
    assert config.instance_group[0].kind == config.instance_group[0].KIND_CPU
    assert not config.HasField("optimization")


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
SIZES = st.one_of(st.integers(1, 64), st.sampled_from(["T", "height"]))
DTYPES = st.sampled_from(["float32", "float16", "bfloat16", "int8", "int64", "bool", "uint8", "float64"])
PORTS = st.builds(
    GraphPort, name=NAMES, dtype=DTYPES, shape=st.lists(SIZES, max_size=4).map(lambda shape: ("N", *shape))
)


@given(
    inputs=st.lists(PORTS, min_size=1, max_size=3, unique_by=lambda port: port.name),
    outputs=st.lists(PORTS, min_size=1, max_size=3, unique_by=lambda port: port.name),
    sizes=st.lists(st.integers(1, 512), min_size=3, max_size=3).map(sorted),
    cap=st.integers(1, 512),
    delay=st.integers(0, 10**9),
    platform=st.sampled_from(["tensorrt_plan", "onnxruntime", "python"]),
)
def test_whatever_the_graph_says_the_file_says_too(inputs, outputs, sizes, cap, delay, platform):
    batch = BatchRange(min=sizes[0], opt=sizes[1], max=sizes[2])
    largest = min(cap, batch.max)
    one = spec(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        batch=batch,
        max_batch=largest,
        queue_delay_us=delay,
        platform=platform,
    )
    config = parse(config_pbtxt(one))
    for ports, written in ((inputs, config.input), (outputs, config.output)):
        assert [port.name for port in ports] == [entry.name for entry in written]
        for port, entry in zip(ports, written, strict=True):
            # Triton knows no dims: []; one number per sample is dims [1], reshaped to [].
            assert list(entry.dims) == ([size if isinstance(size, int) else -1 for size in port.shape[1:]] or [1])
            assert entry.HasField("reshape") is (len(port.shape) == 1)
            assert list(entry.reshape.shape) == []
    assert config.dynamic_batching.max_queue_delay_microseconds == delay
    assert all(1 <= size <= largest for size in tuned_batches(one))
    free = any(not isinstance(size, int) for port in inputs for size in port.shape[1:])
    assert bool(config.model_warmup) is not free


def test_warm_up_takes_zeros_or_a_file_and_never_any_bits():
    ids = GraphPort(name="input_ids", dtype="int64", shape=("N", 16))
    image = GraphPort(name="image", dtype="float32", shape=("N", 3, 8, 8))
    config = parse(config_pbtxt(spec(inputs=(ids, image), warmup_files={"input_ids": "input0-0123456789abcdef"})))
    for warmup in config.model_warmup:
        assert warmup.inputs["input_ids"].input_data_file == "input0-0123456789abcdef"
        assert warmup.inputs["image"].zero_data
        assert not any(one.random_data for one in warmup.inputs.values())


def test_versions_by_number():
    config = parse(config_pbtxt(spec(versions=(2, 5))))
    assert list(config.version_policy.specific.versions) == [2, 5]


def test_networks_of_two_versions_have_engine_caches_of_their_own():
    """ONNX Runtime's key is of the graph's names alone; it makes one folder and none above it."""
    paths = set()
    for key in ("0" * 64, "1" * 64):
        config = parse(config_pbtxt(spec(platform="onnxruntime", plans_by_sm={}, engine_key=key)))
        (provider,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        paths.add(provider.parameters["trt_engine_cache_path"])
    assert len(paths) == 2
    assert all(path.count("/") == 2 for path in paths)


@pytest.mark.parametrize("name", ["serving_default/x:0", "a,b", ":", "ü:"])
def test_a_name_that_onnx_runtime_takes_apart_gets_no_profile(name):
    port = GraphPort(name=name, dtype="float32", shape=("N", 4))
    text = config_pbtxt(spec(platform="onnxruntime", plans_by_sm={}, inputs=(port,)))
    (provider,) = parse(text).optimization.execution_accelerators.gpu_execution_accelerator
    assert not [key for key in provider.parameters if "profile" in key]
    assert "# No profile" in text


@pytest.mark.parametrize("name", ["x", "a b", "a/b", 'quo"ted\\', "übung"])
def test_a_profile_names_the_input(name):
    """Read back as ONNX Runtime reads it: split at commas, then at the first colon."""
    port = GraphPort(name=name, dtype="float32", shape=("N", 4))
    config = parse(config_pbtxt(spec(platform="onnxruntime", plans_by_sm={}, inputs=(port,))))
    (provider,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    for kind, size in (("min", 1), ("opt", 8), ("max", 32)):
        (entry,) = provider.parameters[f"trt_profile_{kind}_shapes"].split(",")
        found, _, shape = entry.partition(":")
        assert (found, shape) == (name, f"{size}x4")


def test_without_known_inputs_nothing_is_tried():
    config = parse(config_pbtxt(spec(warm_up=False)))
    assert not config.model_warmup
