"""A checkpoint with the name of its network -> a network to export."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nm2trt.artifacts import BuildSource, ModelRecord, sha256_of
from nm2trt.errors import ConfigError, InputError, MachineError, Nm2trtError
from nm2trt.export.facts import meant_sparse
from nm2trt.export.inputs import INPUT, InputSpec
from nm2trt.export.source import ExportSource
from nm2trt.export.torch_graph import silenced
from nm2trt.layers import open_source
from nm2trt.library_errors import one_line
from nm2trt.models import build_model, check_model, load_strict
from nm2trt.user_code import call, is_reference, load_function
from nm2trt.verify import verify_path

TRANSFORMERS = "transformers:"
_USUAL_CLASSES = 1000
_HINT = "give the --model that it was saved from"
_TEXT_INPUTS = ("input_ids", "attention_mask")
_USUAL_TOKENS = 128


def load_checkpoint(
    path: Path, model: str, *, inputs: tuple[InputSpec, ...] = (), classes: int | None = None
) -> ExportSource:
    """Build a network and load a checkpoint of it.

    Args:
        path: .safetensors, .pt / .pth / .bin of torch (tensors only, no code in it runs), an index of shards, or a
            Hugging Face folder.
        model: A name that `nm2trt train --model` takes; `package.module:factory`, called with `input_shape` and
            `classes` where it takes them; or `transformers:CLASS`, built from the config.json beside the weights.
        inputs: What the network takes; empty where its name tells (torchvision, timm, transformers).
        classes: Size of the classifier; None reads it off the checkpoint's shapes.

    Raises:
        ConfigError: The name is unknown, its inputs cannot be known, or it does not take them.
        InputError: The checkpoint is missing or unreadable, or its tensors are not the network's (all named kinds).
        MachineError: A package that the name asks for is not installed.
    """
    file = open_source(path).path
    tensors = _tensors(file)
    specs = inputs or _usual_inputs(model)
    if model.startswith(TRANSFORMERS):
        module = _transformers(model.removeprefix(TRANSFORMERS), file.parent)
    elif is_reference(model):
        module = _from_factory(model, specs, classes)
    else:
        module = _by_name(model, specs, classes, tensors)
    module = _prefixed(module, tensors)
    load_strict(module, _with_tied(module, tensors), file, hint=_HINT)
    claims = open_source(path)
    checked = verify_path(path)
    patterns = meant_sparse(checked) if claims.patterns is None else dict(claims.patterns)
    shared = set(patterns.values())
    return ExportSource(
        module=module.float().eval(),
        inputs=specs,
        patterns=patterns,
        data=None,
        claimed=claims.patterns is not None,
        record=BuildSource(
            kind="checkpoint",
            name=path.resolve().name,
            sha256=sha256_of(file),
            method=claims.method,
            pattern=shared.pop() if len(shared) == 1 else ("mixed" if shared else None),
            model=ModelRecord(
                name=model,
                input_shape=specs[0].shape,
                classes=classes or 0,
                parameters=sum(parameter.numel() for parameter in module.parameters()),
            ),
        ),
    )


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    if file.name.endswith(".index.json"):
        from nm2trt.layers.huggingface import shard_names

        found: dict[str, torch.Tensor] = {}
        # The reader has checked that every shard lies beside the index and holds what it says.
        for name in shard_names(file):
            found.update(_tensors(file.parent / name))
        return found
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from nm2trt.layers.sources import file_kind
    from nm2trt.layers.torch_reader import named_tensors, torch_content

    kind = file_kind(file)
    if kind == "safetensors":
        try:
            content: dict[str, torch.Tensor] = load_file(file)
        except (SafetensorError, OSError) as error:
            raise InputError(f"no readable safetensors: {one_line(error)}", where=file, hint="save it again") from None
        return named_tensors(content, file)
    if kind == "torch":
        return named_tensors(torch_content(file), file)
    raise InputError("is no checkpoint of torch or safetensors", where=file, hint="save its state_dict as safetensors")


def _usual_inputs(model: str) -> tuple[InputSpec, ...]:
    """What a network takes by its name.

    Raises:
        ConfigError: The name does not tell.
    """
    if model.startswith(TRANSFORMERS):
        return tuple(InputSpec(name=name, shape=(_USUAL_TOKENS,), dtype="int64", keyword=True) for name in _TEXT_INPUTS)
    if not is_reference(model):
        check_model(model)
        shape = _timm_shape(model) if model.startswith("timm:") else _torchvision_shape(model)
        if shape is not None:
            return (InputSpec(name=INPUT, shape=shape),)
    raise ConfigError(
        f"the inputs of {model} are not known",
        where="--model",
        hint="give one sample's shape with --input-shape 3,224,224, or --input NAME=SHAPE:DTYPE for each input",
    )


def _torchvision_shape(model: str) -> tuple[int, ...] | None:
    import torchvision

    try:
        weights = torchvision.models.get_model_weights(model.removeprefix("torchvision:"))
    except ValueError:
        return None
    size = weights.DEFAULT.transforms().crop_size
    return (3, size[0], size[0]) if len(size) == 1 else (3, *size)


def _timm_shape(model: str) -> tuple[int, ...] | None:
    import timm

    settings = timm.get_pretrained_cfg(model.removeprefix("timm:"), allow_unregistered=True)
    return tuple(settings.input_size) if settings is not None else None


class _Undrawn(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Leaves fresh weights at zero, since the checkpoint replaces every one: drawing resnet50's takes 0.2 s."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default):
            return args[0].zero_()
        return func(*args, **(kwargs or {}))


def _by_name(
    model: str, specs: tuple[InputSpec, ...], classes: int | None, tensors: Mapping[str, torch.Tensor]
) -> nn.Module:
    check_model(model)
    if len(specs) != 1:
        raise ConfigError(f"{model} takes one input, not {len(specs)}", where="--input")
    shape = specs[0].shape

    def build(count: int) -> nn.Module:
        # The caller's random numbers are left as they were.
        with torch.random.fork_rng(devices=[]), _Undrawn():  # type: ignore[no-untyped-call]
            return build_model(model, shape, count)

    return build(classes or _classes(lambda: build(_USUAL_CLASSES), tensors))


def _classes(build: Callable[[], nn.Module], tensors: Mapping[str, torch.Tensor]) -> int:
    """Size of the classifier: that of the checkpoint wherever a network with 1,000 classes has 1,000."""
    expected: Mapping[str, torch.Tensor] | None = None
    with contextlib.suppress(Nm2trtError), torch.device("meta"):
        expected = build().state_dict()
    if expected is None:
        expected = build().state_dict()
    found = {
        int(tensors[name].shape[0])
        for name, tensor in expected.items()
        if name in tensors
        and tensor.ndim
        and tensors[name].ndim
        and tensor.shape[0] == _USUAL_CLASSES
        and tensors[name].shape[1:] == tensor.shape[1:]
    }
    return found.pop() if len(found) == 1 else _USUAL_CLASSES


def _from_factory(reference: str, specs: tuple[InputSpec, ...], classes: int | None) -> nn.Module:
    offered: dict[str, Any] = {"input_shape": specs[0].shape}
    if classes is not None:
        offered["classes"] = classes
    with torch.random.fork_rng(devices=[]):
        module = call(load_function(reference, "--model"), reference, "--model", offered)
    if not isinstance(module, nn.Module):
        raise InputError(
            f"returned {type(module).__name__}", where=f"--model {reference}", hint="return a torch.nn.Module"
        )
    return module


def _transformers(name: str, folder: Path) -> nn.Module:
    try:
        with silenced():
            import transformers
    except ImportError:
        raise MachineError(
            "transformers is not installed", where="--model", hint="pip install 'nm2trt[huggingface]'"
        ) from None
    with silenced():
        kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module) and hasattr(kind, "_from_config")):
        raise ConfigError(
            f"transformers has no network {name!r}", where="--model", hint="such as transformers:BertModel"
        )
    if not (folder / "config.json").is_file():
        raise InputError("no config.json here", where=folder, hint="give the Hugging Face folder")
    try:
        # A local file is read; nothing is fetched, and no code that a folder brings is run.
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        with silenced(), torch.random.fork_rng(devices=[]):
            module: nn.Module = kind._from_config(config, attn_implementation="eager")  # noqa: SLF001 -- what from_config calls
    except Exception as error:
        raise InputError(f"{name} cannot be built: {one_line(error)}", where=folder / "config.json") from error
    return module


def _prefixed(module: nn.Module, tensors: dict[str, torch.Tensor]) -> nn.Module:
    """Bring a checkpoint of the bare network to the names of the network with a head, and the other way round.

    Hugging Face saves `BertModel` without the `bert.` that the same weights carry in a BertForMaskedLM.
    """
    prefix = getattr(module, "base_model_prefix", "")
    if not prefix:
        return module
    expected = module.state_dict().keys()
    dotted = f"{prefix}."
    if not any(name.startswith(dotted) for name in expected):
        renamed = {name.removeprefix(dotted): tensor for name, tensor in tensors.items() if name.startswith(dotted)}
        if renamed and expected <= renamed.keys():
            tensors.clear()
            tensors.update(renamed)
    return module


def _with_tied(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The checkpoint with the second names of tensors that two layers share, which safetensors leave out."""
    given = dict(tensors)
    stored: dict[int, str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if name in given:
            stored.setdefault(id(tensor), name)
    for name, tensor in module.state_dict(keep_vars=True).items():
        if name not in given and id(tensor) in stored:
            given[name] = given[stored[id(tensor)]]
    return given
