"""Others' measurements in a report: never more than they show."""

import json

import numpy as np
import pytest
from helpers import REPOSITORY
from jsonschema import Draft202012Validator

from nm2trt.artifacts import ReportDocument
from nm2trt.errors import ConfigError, InputError
from nm2trt.profile.importers.trtexec import TrtexecPaths, import_table, import_trtexec
from nm2trt.profile.statistics import unpaired_ratio

SPARSE_KERNEL = "sm80_xmma_fprop_sparse_conv_interleaved_i8i8_sptensor_t1"
DENSE_KERNEL = "sm80_xmma_fprop_implicit_gemm_f16f16_tn_n_tilesize128x128"


def run_files(folder, name, median_ms, *, kernel=DENSE_KERNEL, seed=0, options=(), transfers_ms=0.0):
    """A run as trtexec would leave it: times, profile, layers, log."""
    rng = np.random.default_rng(seed)
    compute = median_ms * np.exp(0.01 * rng.standard_normal(400))
    times = [
        {"startEnqMs": 0.0, "endEnqMs": 0.01, "h2dMs": transfers_ms, "computeMs": float(one), "d2hMs": 0.0}
        for one in compute
    ]
    layers = {
        "Layers": [
            {
                "Name": f"conv{index}", "LayerType": "CaskConvolution", "TacticName": kernel, "Groups": 1,
                "Weights": {"Type": "Half", "Count": 64 * 64 * 9}, "HasSparseWeights": 1,
                "Inputs": [{"Name": "x", "Dimensions": [8, 64, 32, 32], "Format/Datatype": "FP16"}],
                "Outputs": [{"Name": "y", "Dimensions": [8, 64, 32, 32], "Format/Datatype": "FP16"}],
            }
            for index in range(4)
        ]
    }  # fmt: skip
    profile = [{"count": 400}]
    profile += [{"name": f"conv{index}", "timeMs": 1.0, "averageMs": median_ms / 4} for index in range(4)]
    lines = ["&&&& RUNNING TensorRT.trtexec [TensorRT v101601]", "[I] Precision: FP32+FP16",
             "[I] Data transfers: Disabled", "[I] CUDA Graph: Enabled", "[I] Spin-wait: Enabled", *options]  # fmt: skip
    (folder / f"{name}.times.json").write_text(json.dumps(times))
    (folder / f"{name}.profile.json").write_text(json.dumps(profile))
    (folder / f"{name}.layers.json").write_text(json.dumps(layers))
    (folder / f"{name}.log").write_text("\n".join(lines))
    return folder / name


def test_two_runs_without_a_yardstick_carry_no_finding(tmp_path):
    paths = TrtexecPaths(
        dense=run_files(tmp_path, "dense", 1.2), sparse=run_files(tmp_path, "sparse", 1.0, kernel=SPARSE_KERNEL, seed=1)
    )
    report = import_trtexec(paths)
    (batch,) = report.batches
    assert (batch.batch, batch.finding, batch.rounds) == (8, "unpaired", 0)
    assert batch.ratio.low < 1.2 < batch.ratio.high
    assert report.facts.faster.state.value == "unknown"
    assert report.facts.chosen.state.value == "proved"
    assert "4 of 4" in report.facts.chosen.evidence
    assert report.layers.chosen == report.layers.weighted == 4
    assert report.layers.layers[0].flops == 2 * 64 * 64 * 9 * 8 * 32 * 32
    assert any("data transfers off, CUDA graph on" in note for note in report.notes)
    assert any("one after the other" in note for note in report.notes)
    assert ReportDocument.model_validate_json(report.model_dump_json(by_alias=True)).batches[0].noise_floor == float(
        "inf"
    )


def test_a_faster_run_without_sparse_kernels_is_not_put_down_to_sparsity(tmp_path):
    paths = TrtexecPaths(dense=run_files(tmp_path, "d", 1.2), sparse=run_files(tmp_path, "s", 1.0, seed=1))
    report = import_trtexec(paths)
    assert "which is not from sparsity: none of 4" in report.batches[0].sentence
    assert report.facts.chosen.state.value == "disproved"


@pytest.mark.parametrize(("again", "finding"), [(1.0, "sparse-faster"), (1.25, "no-difference")])
def test_a_second_sparse_run_is_the_noise(tmp_path, again, finding):
    paths = TrtexecPaths(
        dense=run_files(tmp_path, "d", 1.2),
        sparse=run_files(tmp_path, "s", 1.0, kernel=SPARSE_KERNEL, seed=1),
        again=run_files(tmp_path, "a", again, kernel=SPARSE_KERNEL, seed=2),
    )
    assert import_trtexec(paths).batches[0].finding == finding


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("[I] Precision: FP32+FP16+INT8", "precision: FP32\\+FP16 in the dense run, FP32\\+FP16\\+INT8"),
        ("[I] CUDA Graph: Disabled", "CUDA graph: on in the dense run, off in the sparse run"),
        ("[I] Input inference shape: x=4x64x32x32", "batch: 8 in the dense run, 4 in the sparse run"),
    ],
)
def test_runs_that_do_not_compare_are_refused(tmp_path, option, named):
    sparse = run_files(tmp_path, "s", 1.0)
    text = (tmp_path / "s.log").read_text().splitlines()
    key = option.partition(":")[0]
    (tmp_path / "s.log").write_text("\n".join([*(line for line in text if not line.startswith(key)), option]))
    with pytest.raises(InputError, match=named):
        import_trtexec(TrtexecPaths(dense=run_files(tmp_path, "d", 1.0), sparse=sparse))


def test_without_a_batch_it_is_asked_for(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps([{"computeMs": 1.0}] * 5))
    with pytest.raises(ConfigError, match="--batch N"):
        import_trtexec(TrtexecPaths(sparse=tmp_path / "t"))
    with pytest.raises(ConfigError, match="no run was named"):
        import_trtexec(TrtexecPaths(again=tmp_path / "t"))


def test_unpaired_intervals_cover_slow_waves(tmp_path):
    """Calls that resemble their neighbors hold less than their number says; the interval must know."""
    covered = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        runs = []
        for level in (1.1, 1.0):
            wave = np.zeros(1000)
            for index in range(1, 1000):
                wave[index] = 0.9 * wave[index - 1] + rng.standard_normal() * 0.01
            runs.append(level * np.exp(wave))
        ratio = unpaired_ratio(*runs, seed=seed)
        covered += ratio.low <= 1.1 <= ratio.high
    assert covered >= 0.8 * 30


def test_the_unet_of_the_a100(reference_data):
    report = import_table(reference_data / "a100-unet" / "fp16.csv", batch=32)
    layers = report.layers
    assert (layers.chosen, layers.weighted) == (36, 47)
    assert layers.with_kernel.value == pytest.approx(1.30, abs=0.01)
    assert layers.without_kernel.value == pytest.approx(1.04, abs=0.01)
    assert layers.net.value < layers.dense_ms / layers.sparse_ms
    assert report.facts.faster.state.value == "unknown"


@pytest.mark.parametrize("precision", ["fp16", "fp32", "qat-residual"])
def test_one_engine_alone_is_described_and_not_compared(reference_data, precision):
    report = import_trtexec(TrtexecPaths(dense=reference_data / "a100-resnet18" / precision))
    assert report.headline.startswith("One engine was given (dense), so nothing is compared. GPU compute median")
    assert report.batches == []
    assert report.layers.batch == 32
    assert report.layers.weighted == 21
    assert report.roofline.source.startswith("data sheet of the NVIDIA A100 PCIe 80 GB")
    # 18 layers of convolutions and one of the classifier at batch 32: 116 GFLOP, as counted by others.
    assert sum(row.flops or 0 for row in report.layers.layers) == pytest.approx(116.1e9, rel=0.02)


def test_reports_follow_the_published_schema(tmp_path, reference_data):
    schema = ReportDocument.json_schema()
    published = (REPOSITORY / "docs" / "schemas" / "report.json").read_text()
    # nm2trt profile --schema > docs/schemas/report.json
    assert json.loads(published) == schema
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    paths = TrtexecPaths(dense=run_files(tmp_path, "d", 1.2), sparse=run_files(tmp_path, "s", 1.0, seed=1))
    for report in (
        import_trtexec(paths),
        import_table(reference_data / "a100-unet" / "fp16.csv", batch=32),
    ):

        def refuse(constant):
            raise AssertionError(f"{constant} is no JSON")

        document = json.loads(report.to_json(), parse_constant=refuse)
        validator.validate(document)
        document["surprise"] = 1
        assert not validator.is_valid(document)
