import itertools
import json
import math

import numpy as np
import pytest
from crashing import serve
from helpers import assert_one_error_line, nm2trt_inline
from synthetic import GPU, samples, truth

from nm2trt.artifacts import host_record
from nm2trt.errors import ConfigError, InputError
from nm2trt.estimate.gpus import read_gpu_file
from nm2trt.estimate.kernel import constants_of_file, kernel_time
from nm2trt.gpu_benchmark.config import BenchmarkConfig, Point
from nm2trt.gpu_benchmark.description import describe_gpu
from nm2trt.gpu_benchmark.fit import FEWEST, fit_constants
from nm2trt.gpu_benchmark.gpu_schema import GpuBenchmarkDocument, MachineRecord, PointRecord
from nm2trt.gpu_benchmark.measure import Seen, Variant, Way, has_wrong_outputs, sparse_times, ways_of
from nm2trt.gpu_benchmark.run import samples_of
from nm2trt.gpu_benchmark.timing import MAX_ROUNDS, MIN_ROUNDS, time_variants
from nm2trt.gpu_benchmark.wording import best_sparse, dtype_summary, sentence
from nm2trt.gpu_benchmark.worker import Worker

SPARSE_KERNEL = "sm90_xmma_sparse_gemm_f16f16"


class FakeTimer:
    """Launches take what the truth says, times noise that drifts slowly and jumps at random."""

    description = "made up"

    def __init__(self, us, *, noise=0.01, seed=0):
        self.us, self.noise = us, noise
        self.rng = np.random.default_rng(seed)
        self.now = 0

    def prepare(self, calls, launches):
        name = calls[0]()

        def replay():
            self.now += 1
            drift = 1 + 0.2 * math.sin(self.now / 300)
            return launches * self.us[name] * drift * math.exp(self.rng.normal(0, self.noise))

        return replay


def timed(us, **options):
    variants = {name: [lambda name=name: name] * 2 for name in us}
    return time_variants(variants, FakeTimer(us, **options), budget_s=0.0, seed=0, clock=itertools.count().__next__)


@pytest.mark.parametrize("gain", [0.5, 0.97, 1.0, 1.03, 1.6])
def test_the_statistics_find_a_known_gain_and_no_other(gain):
    us = {"dense": 20.0, "cusparselt": 20.0 / gain, "cusparselt-repeat": 20.0 / gain}
    variant = Variant(Way("cusparselt"), None, ())
    found = sparse_times(variant, timed(us), 0, Seen(SPARSE_KERNEL, 0.0))
    assert found.ratio.low <= gain * 1.005
    assert found.ratio.high >= gain * 0.995
    assert found.ratio.value == pytest.approx(gain, rel=0.02)
    assert found.finding == {0.5: "sparse-slower", 1.6: "sparse-faster"}.get(gain, found.finding)
    if gain == 1.0:
        assert found.finding == "no-difference"
    assert found.chosen


def test_rounds_are_bounded_and_every_set_of_operands_has_its_turn():
    rounds = timed({"a": 500.0, "b": 100.0})
    assert MIN_ROUNDS <= rounds.rounds <= MAX_ROUNDS
    assert rounds.launches % 2 == 0
    short = timed({"a": 0.5})
    assert short.launches == 64


def test_a_name_without_sparse_is_no_sparse_kernel():
    variant = Variant(Way("cusparselt"), None, ())
    us = {"dense": 20.0, "cusparselt": 5.0, "cusparselt-repeat": 5.0}
    found = sparse_times(variant, timed(us), 0, Seen("nvjet_sm90_hsh_128x256", 0.0))
    assert found.finding == "sparse-faster"
    assert not found.chosen
    point = record(sparse=(found,))
    assert best_sparse(point) is None
    assert "no sparse kernel ran" in dtype_summary([point], "fp16")


def record(**changes):
    values = {
        "m": 2048,
        "n": 768,
        "k": 768,
        "dtype": "fp16",
        "origin": "",
        "rounds": 30,
        "launches_per_round": 4,
        "dense_us": 20.0,
        "dense_kernel": "nvjet",
        "sparse": (),
    }
    return PointRecord(**(values | changes))


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_recovers_a_synthetic_gpu_within_its_spreads(seed):
    true = truth()
    fitted = fit_constants(samples(true, seed=seed), GPU, floor_us=2.0, provenance={"kernels": "made up"}, seed=seed)
    assert fitted is not None
    assert fitted.kernels == "torch"
    for name, share in (("efficiency", 0.05), ("sparse_speedup", 0.05)):
        for precision in ("fp16", "int8"):
            assert getattr(fitted, name)[precision] == pytest.approx(getattr(true, name)[precision], rel=share)
    assert fitted.kernel_us == pytest.approx(true.kernel_us, rel=0.1)
    assert fitted.sparse_kernel_us == pytest.approx(true.sparse_kernel_us, rel=0.15)
    assert fitted.memory_efficiency == pytest.approx(true.memory_efficiency, rel=0.1)
    assert fitted.efficiency["bf16"] == fitted.efficiency["fp16"]
    # Times of another draw lie within the spreads as often as these say: four of five.
    for sparse, kind in ((False, "dense"), (True, "sparse")):
        other = [one for one in samples(true, seed=seed + 100) if one.sparse is sparse]
        ratios = [
            one.time_us / kernel_time(one.geometry(), GPU, one.precision, sparse=sparse, constants=fitted).total_us
            for one in other
        ]
        spread = fitted.spread[kind]
        inside = np.mean([spread.low <= ratio <= spread.high for ratio in ratios])
        assert inside > 0.65, (kind, spread, inside)


def test_a_fit_follows_what_it_is_given():
    true = truth(sparse_speedup={"fp16": 0.6, "int8": 1.9, "bf16": 0.6, "tf32": 0.6, "fp8": 1.9}, kernel_us=12.0)
    fitted = fit_constants(samples(true), GPU, floor_us=2.0, provenance={})
    assert fitted.sparse_speedup["fp16"] == pytest.approx(0.6, rel=0.1)
    assert fitted.sparse_speedup["int8"] == pytest.approx(1.9, rel=0.1)
    assert fitted.kernel_us == pytest.approx(12.0, rel=0.1)


def test_too_few_products_make_no_fit():
    assert fit_constants(samples(truth())[: FEWEST - 1], GPU, floor_us=2.0, provenance={}) is None


def test_a_crash_costs_its_way_and_nothing_else():
    config = BenchmarkConfig()
    ways = ways_of(["cusparselt"], search=True)
    worker = Worker(config, budget_s=0.1, l2_bytes=1e6, serve=serve)
    try:
        whole = worker.measure(Point(8192, 64, 64, "fp16", ""), ways)
        assert whole.origin.endswith("cusparselt cusparselt-searched")
        assert whole.refused == ()
        without = worker.measure(Point(64, 64, 64, "fp16", ""), ways)
        assert without.origin.endswith(" cusparselt")
        assert without.origin.split()[0] != whole.origin.split()[0]
        assert without.refused == ("cusparselt-searched failed: illegal instruction",)
        dense = worker.measure(Point(512, 64, 64, "fp16", ""), ways)
        assert dense.refused == ("cusparselt-searched: its process died", "cusparselt: its process died")
        with pytest.raises(RuntimeError, match="out of memory"):
            worker.measure(Point(2048, 64, 64, "fp16", ""), ways)
        again = worker.measure(Point(8192, 64, 64, "fp16", ""), ways)
        assert again.refused == ()
    finally:
        worker.close()
        worker.close()


def test_wrong_outputs_are_noticed_and_integers_must_be_exact():
    us = {"dense": 20.0, "cusparselt": 5.0, "cusparselt-repeat": 5.0}
    variant = Variant(Way("cusparselt"), None, ())

    def with_error(error, dtype):
        return record(dtype=dtype, sparse=(sparse_times(variant, timed(us), 0, Seen(SPARSE_KERNEL, error)),))

    assert not has_wrong_outputs(with_error(0.001, "fp16"))
    assert has_wrong_outputs(with_error(0.5, "fp16"))
    assert has_wrong_outputs(with_error(math.inf, "bf16"))
    assert has_wrong_outputs(with_error(1e-6, "int8"))
    assert not has_wrong_outputs(with_error(0.0, "int8"))


def machine(name="NVIDIA H200"):
    return MachineRecord(
        name=name,
        capability=(9, 0),
        multiprocessors=132,
        l2_mib=60,
        memory_gib=140,
        driver="580",
        torch="2.11",
        cuda="13.0",
        cusparselt="0.8.0",
        backends=("cuSPARSELt 0.8.0",),
    )


def test_a_known_card_keeps_its_data_sheets_peaks_and_an_unknown_one_gets_what_was_reached():
    points = [record(dense_us=10.0), record(dense_us=20.0), record(dtype="int8", dense_us=5.0)]
    known = describe_gpu(machine(), points, copy_gb_s=4300, clock_mhz=1980, power_limit_w=700)
    assert known.dense["fp16"] == 989.4
    assert known.bandwidth_gb_s == 4300
    unknown = describe_gpu(machine("NVIDIA Secret"), points, copy_gb_s=900, clock_mhz=1700, power_limit_w=None)
    assert unknown.dense["fp16"] == pytest.approx(2 * 2048 * 768 * 768 / 10.0 / 1e6, rel=0.01)
    assert unknown.sparse["int8"] == 2 * unknown.dense["int8"]
    assert unknown.clock_mhz == 1700


def document(constants):
    points = tuple(record(m=m) for m in (64, 512))
    return GpuBenchmarkDocument(
        machine=machine(),
        copy_gb_s=4300,
        launch_us=1.5,
        eager_launch_us=3.0,
        timer="made up",
        points=points,
        left_out=("int8 64x64x64",),
        gpu=GPU,
        constants=constants,
        before=None,
        after=None,
        duration_s=1,
        seed=0,
        sentence=sentence(points),
        host=host_record(),
    )


def test_estimate_reads_the_gpu_and_its_constants(tmp_path):
    fitted = fit_constants(samples(truth()), GPU, floor_us=2.0, provenance={"kernels": "of torch"})
    path = tmp_path / "gpu.json"
    path.write_text(document(fitted).to_json())
    found = read_gpu_file(path)
    assert found.spec == GPU
    assert constants_of_file(found.constants, path) == fitted
    path.write_text(document(None).to_json())
    assert read_gpu_file(path).constants is None
    broken = json.loads(document(fitted).to_json())
    del broken["constants"]["kernel_us"]
    path.write_text(json.dumps(broken))
    with pytest.raises(InputError, match="kernel_us") as caught:
        constants_of_file(read_gpu_file(path).constants, path)
    assert "benchmark-gpu" in str(caught.value)


def test_samples_are_the_dense_kernels_and_the_fastest_that_were_seen_to_be_sparse():
    us = {"dense": 20.0, "cusparselt": 8.0, "cusparselt-repeat": 8.0}
    seen = sparse_times(Variant(Way("cusparselt"), None, ()), timed(us), 0, Seen(SPARSE_KERNEL, 0.0))
    slow = seen.model_copy(update={"median_us": 30.0})
    unseen = seen.model_copy(update={"median_us": 1.0, "chosen": False})
    found = samples_of([record(sparse=(seen, slow, unseen)), record(m=64)])
    assert [(one.m, one.sparse) for one in found] == [(2048, False), (2048, True), (64, False)]
    assert found[1].time_us == seen.median_us


def test_without_a_gpu_the_command_says_so_and_writes_nothing(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = nm2trt_inline("benchmark-gpu", "-o", tmp_path / "gpu.json")
    assert_one_error_line(result, 4, "torch finds no GPU", "compute capability 8.0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--dtype", "fp64"), 2, "unknown dtype fp64"),
        (("--dtype", ","), 2, "no dtype"),
        (("--duration", "0"), 2, "--duration"),
    ],
)
def test_wrong_options_are_told(tmp_path, arguments, code, words):
    assert_one_error_line(nm2trt_inline("benchmark-gpu", "-o", tmp_path / "gpu.json", *arguments), code, words)


def test_other_files_are_never_replaced(tmp_path):
    mine = tmp_path / "notes.json"
    mine.write_text("{}")
    assert_one_error_line(nm2trt_inline("benchmark-gpu", "-o", mine), 2, "exists")
    assert_one_error_line(nm2trt_inline("benchmark-gpu", "-o", mine, "--force"), 3, "was not written by")
    assert_one_error_line(nm2trt_inline("benchmark-gpu", "-o", tmp_path / "no" / "gpu.json"), 2, "parent directory")
    assert mine.read_text() == "{}"


def test_the_seed_decides_the_order_and_all_kinds_come_early():
    points = list(BenchmarkConfig(seed=3).points())
    assert points == list(BenchmarkConfig(seed=3).points())
    assert points != list(BenchmarkConfig(seed=4).points())
    assert len(set(points)) == len(points) == 165
    first = points[:40]
    assert {one.dtype for one in first} == {"fp16", "bf16", "int8"}
    assert len({one.m for one in first}) == 5
    with pytest.raises(ConfigError):
        BenchmarkConfig(dtypes=("fp8",))


@pytest.mark.gpu
def test_a_gpu_is_measured_and_its_file_can_be_estimated_with(tmp_path):
    result = nm2trt_inline("benchmark-gpu", "-o", tmp_path / "gpu.json", "--duration", "12", "--json")
    assert result.returncode == 0, result.stderr
    found = GpuBenchmarkDocument.model_validate_json(result.stdout)
    assert found.copy_gb_s > 100
    assert 0.1 < found.launch_us < 50
    assert found.points
    assert (tmp_path / "gpu.png").stat().st_size > 1000
    assert read_gpu_file(tmp_path / "gpu.json").spec == found.gpu


def test_a_product_that_fails_is_left_out_with_its_reason_and_the_rest_goes_on(monkeypatch):
    from nm2trt.gpu_benchmark import run

    monkeypatch.setattr(run, "Worker", lambda config, **options: Worker(config, **options, serve=serve))
    monkeypatch.setattr("nm2trt.gpu_benchmark.config.WEIGHTS", ((768, 768, "one"),))
    config = BenchmarkConfig(dtypes=("fp16",), search=False)
    records, left_out = run._measure_all(config, (), machine(), lambda *_: None, lambda: 0.0, 0.0)
    assert len(records) == 4
    assert left_out == ["fp16 2048x768x768: out of memory"]


def test_no_time_is_told_by_name():
    from nm2trt.gpu_benchmark import run

    config = BenchmarkConfig(dtypes=("int8",))
    records, left_out = run._measure_all(config, (), machine(), lambda *_: None, lambda: 1000.0, 0.0)
    assert records == []
    assert len(left_out) == 55
    assert "int8 64x768x768" in left_out
