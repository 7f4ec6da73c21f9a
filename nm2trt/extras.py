"""The optional parts of an installation: which extra brings which module, and what to say where one is missing.

The core reads, checks, prunes and estimates files with numpy and onnx alone. What trains, exports or measures imports
its libraries when it runs, and a missing one becomes a `MachineError` here, whatever imported it.
"""

from __future__ import annotations

from importlib.util import find_spec

from nm2trt.errors import MachineError

_TORCH = ("torch", "torchvision")
_REPORT = ("jinja2", "matplotlib")

EXTRAS: dict[str, tuple[str, ...]] = {
    "torch": _TORCH,
    "onnxruntime": ("onnxruntime",),
    "report": _REPORT,
    "permute": ("onnxruntime", "scipy"),
    "train": (*_TORCH, *_REPORT, "accelerate", "sklearn", "tomli_w"),
    "export": (*_TORCH, "onnxruntime", "onnxscript", "polygraphy", "sklearn"),
    "calibrate": (*_TORCH, *_REPORT, "onnxruntime", "sklearn"),
    "profile": (*_TORCH, *_REPORT, "onnxruntime", "scipy"),
    "serve": (*_REPORT, "onnxruntime"),
}
"""Modules that each extra of pyproject.toml brings; the smallest first, since the first that has a module is named."""

OPTIONAL_EXTRAS: dict[str, tuple[str, ...]] = {
    "huggingface": ("transformers",),
    "lightning": ("lightning",),
    "card": ("yaml",),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow",),
    "wandb": ("wandb",),
}
"""Modules of extras that `all` leaves out: no command needs them unless it is asked to."""

_OF_COMMAND = {
    "prune": "permute",
    "train": "train",
    "export": "export",
    "refit": "export",
    "calibrate": "calibrate",
    "profile": "profile",
    "benchmark-gpu": "profile",
    "package": "serve",
    "serve": "serve",
    "check-server": "serve",
    "demo": "all",
}


def install_line(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'nm2trt[{extra}]'"


def missing_modules(extra: str) -> tuple[str, ...]:
    """Modules of an extra that are not installed; nothing is imported."""
    return tuple(module for module in EXTRAS[extra] if is_missing(module))


def explain_missing_module(name: str | None, *, where: object = "", command: str | None = None) -> MachineError | None:
    """Turn the name of a module that could not be imported into an error that says how to install it.

    Args:
        name: `ModuleNotFoundError.name`.
        where: What needs it: a file, say. Default: the command.
        command: Of `nm2trt`; its extra is named where it brings the module.

    Returns:
        The error, or None where no extra brings such a module: then it is a bug.
    """
    top = (name or "").partition(".")[0]
    extras = [extra for extra, modules in (EXTRAS | OPTIONAL_EXTRAS).items() if top in modules]
    if not extras:
        return None
    wanted = _OF_COMMAND.get(command or "")
    extra = wanted if wanted in extras or wanted == "all" else extras[0]
    return MachineError(f"{top} is not installed", where=where or command or "", hint=install_line(extra))


def is_missing(module: str) -> bool:
    """Whether a module is not installed; nothing is imported."""
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        return True
    # A folder of that name in the current one (wandb leaves its records in ./wandb) is found, too.
    return spec is None or spec.origin is None
