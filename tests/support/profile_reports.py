"""Made-up reports of `nm2trt profile`; imported as `from profile_reports import ...`."""

from small_networks import fact

from nm2trt.artifacts import (
    BatchRecord,
    Facts,
    NetworkRecord,
    ProtocolRecord,
    RatioRecord,
    ReportDocument,
    RunnerRecord,
    VariantRecord,
    host_record,
)
from nm2trt.artifacts.report import ContrastRecord, DeviceState
from nm2trt.artifacts.report_layers import (
    LayersRecord,
    LayerTimeRecord,
    LoadPointRecord,
    LoadRecord,
    RooflineRecord,
)

EVIL = '<script>alert("1")</script> & "quotes" \' $x$'


def variant(name, scale, batch):
    quantiles_ms = tuple(scale * (1 + 0.1 * (at / 100) ** 3) for at in range(101))
    return VariantRecord(
        name=name,
        calls=500,
        median_ms=quantiles_ms[50],
        p90_ms=quantiles_ms[90],
        p99_ms=quantiles_ms[99],
        mean_ms=scale,
        coefficient_of_variation=0.05,
        throughput_per_s=1000 * batch / scale,
        quantiles_ms=quantiles_ms,
    )


def batch_record(batch, ratio=1.0, *, rounds=100, high=None):
    return BatchRecord(
        batch=batch,
        rounds=rounds,
        calls_per_round=5,
        warmup_s=0.1,
        steady=True,
        variants=(variant("dense", ratio, batch), variant("sparse", 1.0, batch), variant("sparse-repeat", 1.01, batch)),
        ratio=RatioRecord(value=ratio, low=0.0 if high else ratio - 0.01, high=high or ratio + 0.01),
        noise=RatioRecord(value=1.01, low=1.0, high=high or 1.02),
        noise_floor=(high or 1.02) - 1,
        finding="no-difference",
        sentence="no difference that this run could show (A/A noise 2.0 %)",
    )


def report_document(name="resnet-small", **changes):
    fields = {
        "sparse": NetworkRecord(
            kind="build", name=name, sha256="a" * 64, method="sr-ste", pattern="2:4", model="resnet", zero_share=0.5
        ),
        "dense": NetworkRecord(kind="filled", name=name, sha256="a" * 64, zero_share=0.0, note="filled; timing only"),
        "precision": "fp32",
        "runner": RunnerRecord(
            backend="onnxruntime",
            version="1.31",
            provider="CPUExecutionProvider",
            threads=2,
            settings={"spinning": "off"},
            clock="host",
            sparse_kernels=False,
            note="ONNX Runtime's CPU provider has no 2:4 kernels.",
        ),
        "backend_choice": "auto picked onnxruntime",
        "protocol": ProtocolRecord(duration_s=6, seed=0, confidence=0.95, resamples=2000),
        "batches": [batch_record(1), batch_record(8, 1.02), batch_record(32)],
        "headline": "No difference that this run could show at any of 3 batch sizes (A/A noise up to 2.0 %).",
        "facts": Facts(
            legal=fact("proved", "2 of 2"),
            eligible=fact("proved", "2"),
            chosen=fact("disproved", "none"),
            faster=fact("unknown", "cannot show"),
        ),
        "command": f"nm2trt profile {name} -o report",
        "host": host_record(),
    }
    return ReportDocument(**{**fields, **changes})


def layer(index, name=None):
    ratio = RatioRecord(value=1.2, low=1.1, high=1.3)
    return LayerTimeRecord(
        name=name or f"encoder.layer{index}.a_rather_long_name_of_a_convolution.conv{index}",
        type="Conv", dense_ms=1.2 + index / 10, sparse_ms=1.0 + index / 12, ratio=ratio, share=0.05,
        weighted=index % 5 > 0,
        eligible=index % 3 > 0, chosen=[True, False, None][index % 3], flops=10**9 * (index + 1),
        bytes=10**6 * (index + 3), reasons=("memory bound: moving its tensors takes longer",), advice=("fuse",),
    )  # fmt: skip


def full_report(name="net", **changes):
    rows = (*(layer(index) for index in range(30)), layer(31, EVIL))
    state = DeviceState(device="NVIDIA A100 80GB PCIe", clock_sm_mhz=1200, clock_sm_max_mhz=1410, temperature_c=60,
                        power_w=251.0, power_limit_w=300.0, throttle_reasons=("power cap",))  # fmt: skip
    ratio = RatioRecord(value=1.05, low=1.04, high=1.06)
    contrast = ContrastRecord(
        over="control",
        under="sparse",
        ratio=ratio,
        finding="sparse-faster",
        sentence="control / sparse; the kernels",
        shows="the kernels",
    )
    batches = [
        batch_record(size).model_copy(
            update={"device_before": state, "device_after": state.model_copy(update={"clock_sm_mhz": 1400}),
                    "contrasts": (contrast,), "build_ratios": (ratio, ratio), "tuned_for": 8}
        )
        for size in (1, 8, 32)
    ]  # fmt: skip
    points = tuple(
        LoadPointRecord(
            variant=variant, rate_per_s=rate, requests=100, achieved_per_s=rate, median_ms=2.0, p90_ms=3.0, p99_ms=rate
            / 3, max_ms=rate, waiting_share=0.2, lateness_p99_ms=0.1, saturated=rate > 90,
        )
        for rate in (50.0, 70.0, 100.0)
        for variant in ("dense", "sparse")
    )  # fmt: skip
    return report_document(
        name,
        batches=batches,
        layers=LayersRecord(
            batch=8, source="made up", calls=9, layers=rows, dense_ms=90.0, sparse_ms=80.0, weighted=25, eligible=20,
            chosen=10, sentence="10 of 25 layers with weights run sparse kernels",
        ),
        roofline=RooflineRecord(
            source="data sheet", dense_flops_per_s=312e12, sparse_flops_per_s=624e12, bytes_per_s=1.9e12
        ),
        load=LoadRecord(batch=8, streams=4, duration_s=1.0, seed=0, capacity_per_s={"dense": 100.0}, points=points,
                        sentence="With 4 streams"),
        **changes,
    )  # fmt: skip
