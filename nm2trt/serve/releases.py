"""Which Triton release has which TensorRT, as far as NVIDIA publishes it.

Source: Triton's `docs/introduction/compatibility.md` (read up to release 26.08), whose table gives TensorRT for the
`-trtllm-python-py3` images only. The TensorRT backend is in the plain `-py3` images, whose versions are in NVIDIA's
Frameworks Support Matrix; the Dockerfile that we write looks the version up inside the image and stops when it differs.
"""

from __future__ import annotations

MATRIX = "https://docs.nvidia.com/deeplearning/frameworks/support-matrix/index.html"

_TRTLLM_IMAGES: dict[str, tuple[str, str]] = {
    "10.14.1.48": ("26.03", "26.07"),
    "10.13.3.9": ("25.11", "26.02"),
    "10.11.0.33": ("25.08", "25.10"),
    "10.10.0.31": ("25.06", "25.07"),
    "10.9.0.34": ("25.03", "25.05"),
    "10.8.0.43": ("25.01", "25.02"),
    "10.7.0": ("24.12", "24.12"),
    "10.6.0": ("24.11", "24.11"),
    "10.4.0": ("24.09", "24.10"),
    "10.3.0": ("24.08", "24.08"),
    "10.1.0": ("24.07", "24.07"),
}
"""TensorRT -> first and last release whose TensorRT-LLM image has it."""


def triton_release(tensorrt: str) -> str:
    """Say in words which Triton release has a TensorRT version; a plan runs on no other.

    Args:
        tensorrt: All numbers that are known, "10.13.3.9".
    """
    found = _TRTLLM_IMAGES.get(tensorrt) or _TRTLLM_IMAGES.get(".".join(tensorrt.split(".")[:3]))
    if found is None:
        return f"unknown: no published Triton table that we read names TensorRT {tensorrt}; see {MATRIX}"
    first, last = found
    months = first if first == last else f"{first} to {last}"
    return (
        f"the TensorRT-LLM images {months} have TensorRT {tensorrt}; for the plain -py3 image, which holds the "
        f"TensorRT backend, see {MATRIX}"
    )


def library_version(tensorrt: str) -> str:
    """The part of a TensorRT version that its library's file name has: three numbers."""
    return ".".join(tensorrt.split(".")[:3])
