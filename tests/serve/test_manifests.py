import configparser
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from helpers import assert_one_error_line, nm2trt_inline
from serve_builds import everything, make_build

from nm2trt.serve.deploy import runtime_name

IMAGE = "nvcr.io/nvidia/tritonserver:26.07-py3"
KSERVE = ("--server", "kserve", "--image", IMAGE, "--storage-uri", "s3://bucket/models")

# Field -> type, as KServe's CRDs have them (checked with the models of its SDK 0.21); only what we use.
RESOURCES = {"requests": {"*": str}, "limits": {"*": str}}
METADATA = {"name": str, "annotations": {"*": str}}
INFERENCE_SERVICE = {
    "apiVersion": "serving.kserve.io/v1beta1",
    "kind": "InferenceService",
    "metadata": METADATA,
    "spec": {
        "predictor": {
            "minReplicas": int,
            "canaryTrafficPercent": int,
            "model": {
                "modelFormat": {"name": str, "version": str},
                "runtime": str,
                "protocolVersion": str,
                "storageUri": str,
                "resources": RESOURCES,
            },
        }
    },
}
SERVING_RUNTIME = {
    "apiVersion": "serving.kserve.io/v1alpha1",
    "kind": "ClusterServingRuntime",
    "metadata": METADATA,
    "spec": {
        "annotations": {"*": str},
        "supportedModelFormats": [{"name": str, "version": str, "autoSelect": bool}],
        "protocolVersions": [str],
        "containers": [{"name": str, "image": str, "args": [str], "resources": RESOURCES}],
    },
}


def check(value, schema, path="$"):
    """A slow, plain reading of a schema: known fields only, right types."""
    if isinstance(schema, dict):
        assert isinstance(value, dict), path
        for key, one in value.items():
            assert key in schema or "*" in schema, f"{path}.{key} is unknown"
            check(one, schema.get(key, schema.get("*")), f"{path}.{key}")
    elif isinstance(schema, list):
        assert isinstance(value, list), path
        assert value, path
        for at, one in enumerate(value):
            check(one, schema[0], f"{path}[{at}]")
    elif isinstance(schema, str):
        assert value == schema, path
    else:
        assert type(value) is schema, (path, value)


def manifests(repository):
    return [
        yaml.safe_load((repository / name).read_text())
        for name in ("inferenceservice.yaml", "clusterservingruntime.yaml", "compose.yaml")
    ]


def test_kserve_manifests_hold_to_their_schema(tmp_path):
    build = make_build(tmp_path / "build", builder="tensorrt")
    result = nm2trt_inline("package", build, "-o", tmp_path / "repo", "--name", "Digits_v1", "--canary", "10", *KSERVE)
    assert result.returncode == 0, result.stderr
    service, runtime, _ = manifests(tmp_path / "repo")
    check(service, INFERENCE_SERVICE)
    check(runtime, SERVING_RUNTIME)
    for manifest in (service, runtime):
        # RFC 1123, as Kubernetes wants names.
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", manifest["metadata"]["name"])
    predictor = service["spec"]["predictor"]
    assert service["metadata"]["name"] == "digits-v1"
    assert service["metadata"]["annotations"]["nm2trt/sm-80"] == "10.13.3.9"
    assert predictor["canaryTrafficPercent"] == 10
    assert predictor["model"]["runtime"] == runtime["metadata"]["name"]
    assert predictor["model"]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    (container,) = runtime["spec"]["containers"]
    assert container["image"] == IMAGE
    assert container["name"] == "kserve-container"
    formats = runtime["spec"]["supportedModelFormats"]
    assert predictor["model"]["modelFormat"]["name"] in {one["name"] for one in formats}


def test_without_a_gpu_none_is_asked_for(tmp_path):
    result = nm2trt_inline(
        "package",
        make_build(tmp_path / "b"),
        "-o",
        tmp_path / "repo",
        "--platform",
        "onnxruntime",
        "--device",
        "cpu",
        *KSERVE,
    )
    assert result.returncode == 0, result.stderr
    service, _, compose = manifests(tmp_path / "repo")
    assert "resources" not in service["spec"]["predictor"]["model"]
    assert "deploy" not in compose["services"]["triton"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--server", "kserve"), "kserve needs --image and --storage-uri"),
        ((*KSERVE[:4], "--storage-uri", "models"), "'models' is no URI"),
        ((*KSERVE, "--canary", "101"), "101 is outside 0..100"),
        ((*KSERVE, "--name", "-a"), "'-a' makes no Kubernetes name"),
        (("--name", "a b"), "model name 'a b'"),
        ((*KSERVE, "--force"), "a repository keeps its versions"),
    ],
)
def test_wrong_values_are_told_before_anything_is_written(tmp_path, options, words):
    build = make_build(tmp_path / "build")
    result = nm2trt_inline("package", build, "-o", tmp_path / "repo", *options)
    assert_one_error_line(result, 2, words)
    assert not (tmp_path / "repo").exists()


def test_the_dockerfile_refuses_an_image_with_another_tensorrt(tmp_path):
    build = make_build(tmp_path / "build", builder="tensorrt")
    result = nm2trt_inline("package", build, "-o", tmp_path / "repo", "--name", "net")
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "repo/Dockerfile").read_text()
    assert "ARG TRITON_IMAGE\n" in text
    assert "COPY net /models/net" in text
    (line,) = re.findall(r"RUN (find .*\n.*)\n", text)
    # The line's own shell, run on two made-up file systems.
    for name, code in (("libnvinfer.so.10.13.3", 0), ("libnvinfer.so.10.14.1", 1)):
        root = tmp_path / name.replace(".", "-")
        (root / "usr/lib").mkdir(parents=True)
        (root / "usr/lib" / name).touch()
        shell = line.replace("find /", f"find {root}/")
        assert subprocess.run(["sh", "-c", shell], capture_output=True, check=False).returncode == code
    compose = yaml.safe_load((tmp_path / "repo/compose.yaml").read_text())["services"]["triton"]
    assert compose["build"]["args"]["TRITON_IMAGE"].startswith("${TRITON_IMAGE:?")
    assert all(port.startswith("127.0.0.1:") for port in compose["ports"])
    assert compose["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_docker_reads_the_compose_file(tmp_path):
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("missing: docker compose")
    build = make_build(tmp_path / "build", builder="tensorrt")
    nm2trt_inline("package", build, "-o", tmp_path / "repo", "--image", IMAGE)
    result = subprocess.run(
        [docker, "compose", "-f", "compose.yaml", "config", "--format", "json"],
        cwd=tmp_path / "repo", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["services"]["triton"]["build"]["args"]["TRITON_IMAGE"] == IMAGE


def test_a_file_that_somebody_made_his_own_stays(tmp_path):
    build = make_build(tmp_path / "build")
    nm2trt_inline("package", build, "-o", tmp_path / "repo")
    (tmp_path / "repo/Dockerfile").write_text("FROM mine\n")
    result = nm2trt_inline("package", build, "-o", tmp_path / "repo")
    assert result.returncode == 0
    assert "Dockerfile was changed by somebody" in result.stderr
    assert (tmp_path / "repo/Dockerfile").read_text() == "FROM mine\n"


# Keys of Gst-nvinfer's [property] group that we write, from DeepStream's gstnvinfer_property_parser.h.
NVINFER_KEYS = {
    "gpu-id", "onnx-file", "model-engine-file", "batch-size", "infer-dims", "network-mode", "network-type",
    "output-blob-names", "model-color-format", "net-scale-factor", "process-mode", "gie-unique-id",
    "output-tensor-meta", "labelfile-path", "classifier-threshold",
}  # fmt: skip


def image_build(folder, channels, **options):
    """A build whose input is an image of so many channels."""
    build = make_build(folder, **options)
    document = json.loads((build / "build.json").read_text())
    document["inputs"][0]["shape"] = ["N", channels, 6, 6]
    (build / "build.json").write_text(json.dumps(document))
    return build


@pytest.mark.parametrize("builder", [None, "tensorrt"])
def test_deepstream(tmp_path, builder):
    build = image_build(tmp_path / "build", 3, builder=builder)
    result = nm2trt_inline("package", build, "--server", "deepstream", "-o", tmp_path / "ds", "--name", "net")
    assert result.returncode == 0, result.stderr
    config = configparser.ConfigParser()
    config.read(tmp_path / "ds/config_infer.txt")
    (group,) = config.sections()
    assert group == "property"
    values = dict(config["property"])
    assert set(values) <= NVINFER_KEYS
    assert values["infer-dims"] == "3;6;6"
    assert values["batch-size"] == "64"
    assert values["output-blob-names"] == "y"
    assert values["model-color-format"] == "0"
    assert ("model-engine-file" in values) is (builder is not None)
    for key in ("onnx-file", "model-engine-file", "labelfile-path"):
        assert key not in values or (tmp_path / "ds" / values[key]).is_file()


def test_deepstream_takes_images_only(tmp_path):
    result = nm2trt_inline("package", make_build(tmp_path / "b"), "--server", "deepstream", "-o", tmp_path / "ds")
    assert_one_error_line(result, 3, "Gst-nvinfer feeds one image", "x ['N', 4, 6, 6]")
    assert not (tmp_path / "ds").exists()


def test_an_rtx_plan_is_not_put_into_a_deepstream_folder(tmp_path):
    build = image_build(tmp_path / "build", 1, builder="tensorrt-rtx")
    result = nm2trt_inline("package", build, "--server", "deepstream", "-o", tmp_path / "ds")
    assert result.returncode == 0, result.stderr
    assert set(everything(tmp_path / "ds")) == {"config_infer.txt", "model.onnx", "package.json"}


@pytest.fixture
def snippets(tmp_path):
    build = make_build(tmp_path / "build")
    result = nm2trt_inline("package", build, "--server", "onnxruntime", "-o", tmp_path / "ort")
    assert result.returncode == 0, result.stderr
    return tmp_path / "ort"


def test_the_python_snippet_runs(snippets, tmp_path):
    x = np.random.default_rng(0).standard_normal((3, 4, 6, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    result = subprocess.run(
        [sys.executable, snippets / "run.py", "--cpu", tmp_path / "x.npy"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "runs on CPUExecutionProvider" in result.stderr
    name, *numbers = result.stdout.replace("[3, 8, 1, 1]", "").split()
    session = onnxruntime.InferenceSession(str(snippets / "model.onnx"), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": x})[0]
    assert name == "y"
    np.testing.assert_allclose([float(one) for one in numbers], expected.ravel()[:10], rtol=1e-4)


@pytest.mark.skipif(
    not os.environ.get("NM2TRT_ONNXRUNTIME") or shutil.which("cmake") is None,
    reason="missing: cmake and an unpacked ONNX Runtime release with include/ and lib/ (set NM2TRT_ONNXRUNTIME)",
)
def test_the_cpp_snippet_compiles_and_runs(snippets):
    release = os.environ["NM2TRT_ONNXRUNTIME"]
    for command in (["cmake", "-B", "build", f"-DONNXRUNTIME={release}"], ["cmake", "--build", "build"]):
        subprocess.run(command, cwd=snippets, check=True, capture_output=True)
    result = subprocess.run(
        [snippets / "build/run", snippets / "model.onnx"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LD_LIBRARY_PATH": f"{release}/lib"},
    )
    session = onnxruntime.InferenceSession(str(snippets / "model.onnx"), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": np.zeros((1, 4, 6, 6), np.float32)})[0]
    np.testing.assert_allclose([float(one) for one in result.stdout.split()[1:]], expected.ravel(), rtol=1e-4)


def test_the_cpp_snippet_names_the_same_options_as_the_python_one(snippets):
    """A weak stand-in for the test above, where no headers are."""
    text = (snippets / "main.cpp").read_text()
    for option in ("trt_fp16_enable", "trt_sparsity_enable", "trt_engine_cache_enable", "trt_engine_cache_path"):
        assert option in text
        assert option in (snippets / "run.py").read_text()
    assert onnx.load(snippets / "model.onnx").graph.input[0].name == "x"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("3d-unet", "makes no Kubernetes name"),
        ("1", "makes no Kubernetes name"),
        ("net-", "makes no Kubernetes name"),
        ("net.", "makes no Kubernetes name"),
        ("net_", "makes no Kubernetes name"),
        ("n" * 54, "54 long, and a KServe service's name at most 53"),
        ("n" * 64, "64 long"),
    ],
)
def test_a_name_that_kserve_refuses(tmp_path, name, words):
    """KServe's webhook: [a-z]([-a-z0-9]*[a-z0-9])?; and NAME-predictor is a Kubernetes service, at most 63 long."""
    build = make_build(tmp_path / "build")
    result = nm2trt_inline("package", build, "-o", tmp_path / "repo", *KSERVE, "--name", name)
    assert_one_error_line(result, 2, words)
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize("name", ["net", "Net", "a", "UNet.3D_v2", "n" * 53, "a-1"])
def test_a_name_that_kserve_takes(tmp_path, name):
    build = make_build(tmp_path / "build")
    result = nm2trt_inline("package", build, "-o", tmp_path / "repo", *KSERVE, "--name", name)
    assert result.returncode == 0, result.stderr
    service = yaml.safe_load((tmp_path / "repo/inferenceservice.yaml").read_text())
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", service["metadata"]["name"])


def test_one_tag_of_two_registries_is_two_runtimes():
    images = [
        "nvcr.io/nvidia/tritonserver:26.07-py3",
        "mirror.example/nvidia/tritonserver:26.07-py3",
        "mirror.example:5000/tritonserver:26.07-py3",
        "mirror.example:5000/tritonserver",
        "nvcr.io/nvidia/tritonserver@sha256:" + "a" * 64,
        "nvcr.io/nvidia/tritonserver@sha256:" + "a" * 63 + "b",
        "nvcr.io/nvidia/tritonserver:" + "x" * 120,
        "nvcr.io/nvidia/tritonserver:" + "x" * 121,
    ]
    names = [runtime_name(image) for image in images]
    assert len(set(names)) == len(images)
    for name in names:
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name)


@pytest.mark.parametrize("uri", ["models", "://x", "s3://", "s3:// x", 's3://a"b', "s3://a\nb"])
def test_a_storage_uri_that_is_none(tmp_path, uri):
    build = make_build(tmp_path / "build")
    result = nm2trt_inline("package", build, "-o", tmp_path / "repo", *KSERVE[:4], "--storage-uri", uri)
    assert result.returncode == 2, result.stderr
    assert "is no URI" in result.stderr


def test_prometheus_finds_the_metrics(tmp_path):
    """Keys as KServe's own kserve-tritonserver runtime has them, and its switch at the service."""
    build = make_build(tmp_path / "build")
    nm2trt_inline("package", build, "-o", tmp_path / "repo", *KSERVE)
    service, runtime, _ = manifests(tmp_path / "repo")
    assert service["metadata"]["annotations"]["serving.kserve.io/enable-prometheus-scraping"] == "true"
    annotations = runtime["spec"]["annotations"]
    assert annotations["prometheus.kserve.io/path"] == annotations["prometheus.io/path"] == "/metrics"
    (container,) = runtime["spec"]["containers"]
    assert f"--metrics-port={annotations['prometheus.kserve.io/port']}" in container["args"]


def labeled(tmp_path, text):
    build = image_build(tmp_path / "build", 3)
    document = json.loads((build / "build.json").read_text())
    document["outputs"][0]["shape"] = ["N", 3]
    (build / "build.json").write_text(json.dumps(document))
    (tmp_path / "labels.txt").write_bytes(text.encode())
    options = ("--server", "deepstream", "-o", tmp_path / "ds", "--name", "net", "--labels", tmp_path / "labels.txt")
    return nm2trt_inline("package", build, *options)


@pytest.mark.parametrize(
    "text", ["cat\ndog\nbird", "cat\r\ndog\r\nbird\r\n", "\ufeffcat\ndog\nbird\n", "a b\nc,d\ne\u2028\u0085f\n"]
)
def test_nvinfer_gets_one_label_for_each_class(tmp_path, text):
    result = labeled(tmp_path, text)
    assert result.returncode == 0, result.stderr
    written = (tmp_path / "ds/labels.txt").read_text()
    # As nvinfer reads them: apart at semicolons, up to the line's end.
    assert written.removesuffix("\n").split(";") == text.lstrip("\ufeff").replace("\r", "").removesuffix("\n").split(
        "\n"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a;b\nc\nd\n", "line 1 is 'a;b'"),
        ("a\nb\n;\n", "line 3 is ';'"),
        ("a\nb c \nd\n", "line 2 is 'b c '"),
        ("a\n\nc\n", "line 2 is empty"),
        ("a\nb\n", "holds 2 lines, and the network has 3 classes"),
        ("a\nb\nc\nd\n", "holds 4 lines"),
    ],
)
def test_labels_that_nvinfer_would_take_apart(tmp_path, text, words):
    assert_one_error_line(labeled(tmp_path, text), 3, words)
    assert not (tmp_path / "ds").exists()


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf", "-inf", "1e-60", "1e39", "-0.0"])
def test_scales_that_nvinfer_refuses(tmp_path, scale):
    build = image_build(tmp_path / "build", 3)
    result = nm2trt_inline("package", build, "--server", "deepstream", "-o", tmp_path / "ds", "--scale", scale)
    assert_one_error_line(result, 2, "--scale")
    assert not (tmp_path / "ds").exists()


def test_a_replaced_folder_does_not_find_the_old_networks_engines(tmp_path):
    paths = []
    for seed in (1, 2):
        build = make_build(tmp_path / str(seed), seed=seed)
        nm2trt_inline("package", build, "--server", "onnxruntime", "-o", tmp_path / "ort", "--force")
        found = re.search(r'"(engines-[0-9a-f]{16})"', (tmp_path / "ort/run.py").read_text())
        assert found.group(1) in (tmp_path / "ort/main.cpp").read_text()
        paths.append(found.group(1))
    assert paths[0] != paths[1]


def test_manifests_do_not_go_on_speaking_of_an_old_version(tmp_path):
    """Packaged again for the same repository without --server kserve, or rolled back."""
    repository = tmp_path / "repo"
    nm2trt_inline(
        "package", make_build(tmp_path / "1", seed=1), "-o", repository, "--name", "Net", "--canary", "7", *KSERVE
    )
    first = manifests(repository)
    assert (
        nm2trt_inline("package", make_build(tmp_path / "2", seed=2), "-o", repository, "--name", "Net").returncode == 0
    )
    assert nm2trt_inline("package", tmp_path / "2", "-o", repository, "--name", "other").returncode == 0
    second = manifests(repository)
    digests = [one[0]["metadata"]["annotations"]["nm2trt/build-sha256"] for one in (first, second)]
    assert digests[0] != digests[1]
    second[0]["metadata"]["annotations"]["nm2trt/build-sha256"] = digests[0]
    assert first == second
    assert nm2trt_inline("package", "-o", repository, "--name", "Net", "--rollback").returncode == 0
    assert manifests(repository) == first
