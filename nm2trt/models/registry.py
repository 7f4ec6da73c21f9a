"""Builds a network from its name and the data's shape."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nm2trt.errors import ConfigError, InputError, MachineError
from nm2trt.library_errors import one_line
from nm2trt.models.encoder import Encoder
from nm2trt.models.mlp import Mlp
from nm2trt.models.resnet import CifarResNet
from nm2trt.user_code import call, is_reference, load_function

Shape = tuple[int, ...]
Factory = Callable[[Shape, int], nn.Module]

_FACTORIES: dict[str, Factory] = {
    "mlp": lambda shape, classes: Mlp(shape, classes),
    "resnet8": lambda shape, classes: CifarResNet(shape, classes, blocks=1),
    "resnet20": lambda shape, classes: CifarResNet(shape, classes, blocks=3),
    "resnet32": lambda shape, classes: CifarResNet(shape, classes, blocks=5),
    "resnet56": lambda shape, classes: CifarResNet(shape, classes, blocks=9),
    "resnet18-cifar": lambda shape, classes: CifarResNet(shape, classes, blocks=2, widths=(64, 128, 256, 512)),
    "encoder-small": lambda shape, classes: Encoder(shape, classes),
}
_TORCHVISION, _TIMM = "torchvision:", "timm:"
_WITH_AUXILIARY_OUTPUTS = ("googlenet", "inception_v3")
_TRIAL_BATCH = 2


def model_names() -> list[str]:
    """Names of nm2trt's own networks, beside torchvision's, `timm:NAME` and `package.module:factory`."""
    return sorted(_FACTORIES)


def check_model(name: str) -> None:
    """Check a name without building anything.

    Raises:
        ConfigError: The name is unknown.
        MachineError: It is timm's, and timm is not installed.
    """
    if name in _FACTORIES:
        return
    if name.startswith(_TIMM):
        _check_known(name, _timm().list_models(), _TIMM)
    elif name.startswith(_TORCHVISION) or not is_reference(name):
        _check_known(name, _torchvision_names(), _TORCHVISION)


def build_model(name: str, input_shape: Shape, classes: int) -> nn.Module:
    """Build a network with fresh weights from torch's global random generator, and try it on two samples.

    Args:
        name: One of `model_names()`; `NAME` or `torchvision:NAME` of a torchvision classifier; `timm:NAME`; or
            `package.module:factory`, called with the keywords `input_shape` and `classes` where it takes them.
        input_shape: One sample, [C, H, W] for images.
        classes: Size of the output's last axis.

    Raises:
        ConfigError: The name is unknown, or the network cannot take such samples.
        InputError: A factory raised, or returned no network.
        MachineError: timm is not installed.
    """
    check_model(name)
    if name in _FACTORIES:
        model = _FACTORIES[name](input_shape, classes)
    elif name.startswith(_TIMM):
        model = _from_timm(name.removeprefix(_TIMM), input_shape, classes)
    elif name.startswith(_TORCHVISION) or not is_reference(name):
        model = _from_torchvision(name.removeprefix(_TORCHVISION), input_shape, classes)
    else:
        model = _from_factory(name, input_shape, classes)
    _try(model, name, input_shape, classes)
    return model


def _check_known(name: str, known: list[str], prefix: str) -> None:
    bare = name.removeprefix(prefix)
    if bare in known:
        return
    near = difflib.get_close_matches(bare, [*known, *_FACTORIES], n=3)
    hint = f" (near it: {', '.join(near)})" if near else ""
    others = "a torchvision classifier such as resnet50, timm:NAME, or package.module:factory"
    raise ConfigError(f"unknown model {name!r}{hint}, choose from {', '.join(model_names())}, {others}")


def _torchvision_names() -> list[str]:
    import torchvision

    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _from_torchvision(name: str, input_shape: Shape, classes: int) -> nn.Module:
    import torchvision

    options: dict[str, Any] = {"num_classes": classes}
    if name in _WITH_AUXILIARY_OUTPUTS:
        # In training they return a tuple, whose other losses torchvision leaves to the caller.
        options |= {"aux_logits": False, "init_weights": True}
    # These have weights of the image's size.
    if name.startswith("vit_"):
        options["image_size"] = input_shape[-1]
    elif name.startswith("maxvit_"):
        options["input_size"] = input_shape[-2:]
    return _made(lambda: torchvision.models.get_model(name, weights=None, **options), name, input_shape)


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise MachineError("timm is not installed", where="model", hint="pip install 'nm2trt[timm]'") from None
    return timm


def _from_timm(name: str, input_shape: Shape, classes: int) -> nn.Module:
    timm = _timm()
    options: dict[str, Any] = {"num_classes": classes, "in_chans": input_shape[0]}
    settings = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if settings is not None and settings.fixed_input_size:
        options["img_size"] = input_shape[-2:]
    return _made(lambda: timm.create_model(name, pretrained=False, **options), f"{_TIMM}{name}", input_shape)


def _from_factory(reference: str, input_shape: Shape, classes: int) -> nn.Module:
    function = load_function(reference, "model")
    model = call(function, reference, "model", {"input_shape": input_shape, "classes": classes})
    if not isinstance(model, nn.Module):
        raise InputError(
            f"returned {type(model).__name__}", where=f"model {reference}", hint="return a torch.nn.Module"
        )
    return model


def _made(make: Callable[[], Any], name: str, input_shape: Shape) -> nn.Module:
    try:
        model: nn.Module = make()
    except Exception as error:
        raise _unfit(name, input_shape, error) from error
    return model


def _try(model: nn.Module, name: str, input_shape: Shape, classes: int) -> None:
    """Run two samples through a network in evaluation mode, so that a misfit is found before training."""
    training = model.training
    model.eval()
    try:
        # The caller's random numbers are left as they were.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = model(torch.zeros(_TRIAL_BATCH, *input_shape))
    except ConfigError:
        raise
    except Exception as error:
        raise _unfit(name, input_shape, error) from error
    finally:
        model.train(training)
    if not isinstance(output, torch.Tensor):
        raise ConfigError(f"{name} returns {type(output).__name__} and no tensor of logits", where="model")
    if output.ndim < 2 or output.shape[0] != _TRIAL_BATCH or output.shape[-1] != classes:
        raise ConfigError(
            f"{name} maps {[_TRIAL_BATCH, *input_shape]} to {list(output.shape)}, not to "
            f"{_TRIAL_BATCH} x {classes} logits",
            where="model",
        )


def _unfit(name: str, input_shape: Shape, error: Exception) -> ConfigError:
    return ConfigError(
        f"{name} cannot take samples {list(input_shape)}: {one_line(error)}",
        where="model",
        hint="choose another model or data",
    )
