"""What `nm2trt train` can be told, from a TOML file and from options; every mistake is reported at once."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nm2trt.artifacts.code_trust import check_code, was_written_here
from nm2trt.data import check_data
from nm2trt.errors import ConfigError, InputError
from nm2trt.models import check_model
from nm2trt.pattern import NMPattern
from nm2trt.training.methods import PAPER_DECAY, STEP_BY_DEFAULT, MaskDecay, Method
from nm2trt.training.recipes import RECIPES, Recipe
from nm2trt.training.recorder import TrackerName

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
_LOGGER = logging.getLogger(__name__)

_RENAMED = {"refresh_every": "mask_update_interval"}
"""What settings were called before; older config.toml files and states are read on."""


_TEACHER_WEIGHT = 0.67
"""Huang et al., AAAI 2025."""

FILE = "config.toml"
"""A run's effective configuration, in its folder."""


class TrainConfig(BaseModel):
    """One training run. Defaults suit the bundled digits on a CPU."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    recipe: Recipe | None = None
    """Settings to start from (`nm2trt.training.recipes`); those that are given beside it win."""
    data: str = "digits"
    data_dir: Path | None = None
    """Folder of the data set's files; None looks in the usual places."""
    image_size: int | None = Field(default=None, ge=8)
    """Height and width of imagefolder's samples; None takes 224."""
    randaugment: bool = False
    """RandAugment on imagefolder's training images."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that read samples; None takes the cores (at most 8) for files and none for data in memory."""
    model: str = "resnet8"
    init: Path | None = None
    """Weights to start from: safetensors, a torch file, or a run folder; None draws them from the seed."""
    hold_masks: bool = False
    """Take the masks from the weights of `init` as they are and hold them: asp without its dense phase."""
    teacher: Path | None = None
    """A trained network to learn from: a run folder, or a checkpoint of the same network."""
    teacher_weight: float = Field(default=_TEACHER_WEIGHT, ge=0, le=1)
    """Of the divergence from the teacher's outputs in the loss; the task has the rest."""
    teacher_temperature: float = Field(default=1.0, gt=0)
    """Divides the logits of both networks in that divergence."""
    method: Method = "sr-ste"
    """Where it is left out and the optimizer is adamw, it is step."""
    """`asp` trains dense, prunes once by magnitude, and goes on with the mask held."""
    pattern: str = "2:4"
    """N kept of every M along the reduction axis. With "dense" it is only recorded (SAD)."""
    decay: float = Field(default=PAPER_DECAY, ge=0)
    """lambda of SR-STE; the paper's 2e-4."""
    decay_warmup: float = Field(default=0, ge=0, le=1)
    """Of sr-ste: share of all steps in which lambda grows from 0 to `decay`."""
    mask_decay: MaskDecay = "linear"
    """Of decaying-mask: a factor of pruned weights falls linearly or exponentially, or N falls to the pattern's."""
    mask_update_interval: int = Field(default=1, ge=1)
    """Optimizer steps between new masks."""
    freeze_epochs: int = Field(default=0, ge=0)
    """Last epochs in which the masks are held."""
    dense_epochs: int | None = Field(default=None, ge=1)
    """With `asp`: epochs before pruning; None takes half. The learning rate starts anew after it."""
    layers: dict[str, str] = Field(default_factory=dict)
    """Glob on module names -> pattern of these layers."""
    exclude: list[str] = Field(default_factory=list)
    """Globs on module names that stay dense."""
    epochs: int = Field(default=30, ge=1)
    batch_size: int = Field(default=64, ge=1)
    """Samples per process and micro-batch."""
    accumulation: int = Field(default=1, ge=1)
    """Micro-batches per optimizer step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD."""
    weight_decay: float = Field(default=5e-4, ge=0)
    warmup_epochs: float = Field(default=1.0, ge=0)
    """Linear warm-up from 0, then cosine to 0."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of weights, order and augmentation; numpy takes 32 bits."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Automatic mixed precision of the forward pass; weights stay float32."""
    channels_last: bool = False
    """Weights and images in channels_last memory format, in which Tensor Cores convolve without transposing."""
    tf32: bool = False
    """Matrix products of float32 in TensorFloat-32 on GPUs that have it; convolutions do by torch's default."""
    fsdp: bool = False
    """Shard the weights over the processes (FSDP2) instead of copying them (DDP)."""
    tensorboard: bool = False
    """What log_with = ["tensorboard"] says, too."""
    log_with: list[TrackerName] = Field(default_factory=list)
    """Experiment trackers that are told the records while the run goes on, by accelerate's names."""
    device: Literal["auto", "cpu"] = "auto"
    """`auto` takes the accelerator that is there; a CPU never falls back silently, run.json names it."""

    @model_validator(mode="before")
    @classmethod
    def _step_under_adam(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = _with_new_names(values)
        if "method" in values:
            return values
        if values.get("hold_masks"):
            return {**values, "method": "asp"}
        # Moving masks spoil Adam's second moments (Lu et al., ICML 2023).
        return {**values, "method": "step"} if values.get("optimizer") == "adamw" else values

    @field_validator("data")
    @classmethod
    def _known_data(cls, value: str) -> str:
        _or_value_error(lambda: check_data(value))
        return value

    @field_validator("model")
    @classmethod
    def _known_model(cls, value: str) -> str:
        _or_value_error(lambda: check_model(value))
        return value

    @field_validator("pattern")
    @classmethod
    def _legal_pattern(cls, value: str) -> str:
        return _canonical(value)

    @field_validator("layers")
    @classmethod
    def _legal_layers(cls, value: dict[str, str]) -> dict[str, str]:
        return {glob: _canonical(pattern) for glob, pattern in value.items()}

    @model_validator(mode="after")
    def _data_takes_its_options(self) -> TrainConfig:
        _or_value_error(lambda: check_data(self.data, image_size=self.image_size, randaugment=self.randaugment))
        return self

    @model_validator(mode="after")
    def _warmup_fits(self) -> TrainConfig:
        if self.warmup_epochs and self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs = {self.warmup_epochs} leaves nothing of {self.epochs} epochs")
        return self

    @model_validator(mode="after")
    def _phases_fit(self) -> TrainConfig:
        if self.freeze_epochs >= self.epochs:
            raise ValueError(
                f"freeze_epochs = {self.freeze_epochs} leaves nothing of {self.epochs} epochs to move masks"
            )
        if self.method == "step" and self.optimizer != "adamw":
            raise ValueError(f"step holds Adam's second moments, so it goes with optimizer adamw, not {self.optimizer}")
        if self.decay_warmup and self.method != "sr-ste":
            raise ValueError(f"decay_warmup goes with method sr-ste, not {self.method}")
        if self.mask_decay != "linear" and self.method != "decaying-mask":
            raise ValueError(f"mask_decay goes with method decaying-mask, not {self.method}")
        if self.method == "s-ste" and self.mask_update_interval != 1:
            raise ValueError("s-ste finds new masks in every step, so mask_update_interval is 1")
        if self.method != "asp":
            if self.dense_epochs is not None:
                raise ValueError(f"dense_epochs goes with method asp, not {self.method}")
        elif self.hold_masks and self.dense_epochs is not None:
            raise ValueError("hold_masks takes the masks at once, so there are no dense_epochs")
        elif min(self.phases()) < 1:
            raise ValueError(f"asp needs an epoch before pruning and one after, of {self.epochs} epochs")
        return self

    def trackers(self) -> list[TrackerName]:
        """Every tracker that was asked for, once."""
        asked: list[TrackerName] = ["tensorboard"] if self.tensorboard else []
        return list(dict.fromkeys(asked + self.log_with))

    def phases(self) -> tuple[int, ...]:
        """Epochs of each learning rate cycle: one, or with `asp` two with the pruning between them."""
        if self.method != "asp" or self.hold_masks:
            return (self.epochs,)
        before = self.epochs // 2 if self.dense_epochs is None else self.dense_epochs
        return before, self.epochs - before

    @model_validator(mode="after")
    def _teacher_is_there(self) -> TrainConfig:
        if self.teacher is None and (self.teacher_weight, self.teacher_temperature) != (_TEACHER_WEIGHT, 1.0):
            raise ValueError("teacher_weight and teacher_temperature go with a teacher")
        return self

    @model_validator(mode="after")
    def _finetuning_has_weights(self) -> TrainConfig:
        if self.hold_masks and self.init is None:
            raise ValueError("hold_masks takes the masks from trained weights, give their checkpoint as init")
        if self.hold_masks and self.method != "asp":
            raise ValueError(f"hold_masks goes with method asp, not {self.method}; leave the method out")
        if self.recipe == "finetune" and self.init is None:
            raise ValueError("recipe finetune starts from a trained network, give its checkpoint as init")
        return self

    def recorded(self) -> dict[str, Any]:
        """The configuration for the records: of paths of this machine, only the checkpoint's own name."""
        values = self.model_dump(mode="json", exclude={"data_dir"})
        return values | {
            "init": self.init.name if self.init else None,
            "teacher": self.teacher.name if self.teacher else None,
        }

    def to_toml(self) -> str:
        """The effective configuration, accepted again by `--config`."""
        values = self.model_dump(mode="json", exclude_none=True)
        return tomli_w.dumps(values)


def load_config(path: Path | None, options: Mapping[str, Any]) -> TrainConfig:
    """Join a recipe (if any is named) with a TOML file (if any), which wins, and with options, which win over both.

    Raises:
        InputError: The file is missing or no TOML.
        ConfigError: Anything is wrong with a value; all mistakes are in the one line.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError("no such configuration file", where=path) from None
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"no readable TOML: {error}", where=path) from None
    values = _with_new_names(values) | _with_new_names(options)
    # An unknown name is told with the other mistakes.
    values = RECIPES.get(str(values.get("recipe")), {}) | values
    if not {"method", "hold_masks"} & values.keys() and values.get("optimizer") == "adamw":
        _LOGGER.info("%s under AdamW; --method sr-ste has SR-STE", STEP_BY_DEFAULT)
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        mistakes = [_mistake(entry) for entry in error.errors()]
        count = "" if len(mistakes) == 1 else f"{len(mistakes)} mistakes: "
        raise ConfigError(count + "; ".join(mistakes), where=path or "", hint="see nm2trt train --help") from None


def _with_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    return {_RENAMED.get(name, name): value for name, value in values.items()}


_FREE_ON_RESUME = frozenset({"data_dir", "workers", "tensorboard", "log_with", "fsdp"})


def resumed_config(run: Path, options: Mapping[str, Any], *, trust: bool = False) -> TrainConfig:
    """Read the configuration that a run was started with; options may only repeat it.

    Args:
        run: Folder with config.toml and a saved state.
        options: Of the command line.
        trust: Import code and read files that config.toml names although this machine did not write it.

    Raises:
        InputError: There is no run; or config.toml, which this machine did not write, names code or files.
        ConfigError: An option differs; where the data lies, who reads it and whether weights are sharded may.
    """
    if not (run / FILE).is_file():
        raise InputError("there is no run to resume", where=run, hint="start one without --resume")
    _check_written(run / FILE, options, trust=trust)
    started, now = load_config(run / FILE, {}), load_config(run / FILE, options)
    _check_same(started, now, run, hint="leave these out")
    return now


def check_unedited(saved: Mapping[str, Any], config: TrainConfig, run: Path) -> None:
    """Compare a configuration with the one that a run's state was saved under.

    Args:
        saved: `TrainConfig.model_dump(mode="json")` of then.
        config: Of now, from RUN/config.toml.
        run: The folder, for the error line.

    Raises:
        ConfigError: Someone has edited config.toml; what was learned with other settings would be recorded as learned
            with these.
    """
    try:
        started = TrainConfig.model_validate(saved)
    except ValidationError:
        # Saved by a version that knew other settings: nothing can be compared.
        return
    _check_same(started, config, run / FILE, hint="put these back, or start another run with them")


def _check_same(started: TrainConfig, now: TrainConfig, where: Path, *, hint: str) -> None:
    different = [
        f"{name} was {getattr(started, name)!r}, not {getattr(now, name)!r}"
        for name in TrainConfig.model_fields
        if name not in _FREE_ON_RESUME and getattr(started, name) != getattr(now, name)
    ]
    if different:
        raise ConfigError(f"options differ from the original run: {'; '.join(different)}", where=where, hint=hint)


def _check_written(path: Path, options: Mapping[str, Any], *, trust: bool) -> None:
    """Refuse code and files that a config.toml from elsewhere names."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError):
        # `load_config` says so.
        return
    check_code(path, {name: str(values[name]) for name in ("model", "data") if name in values}, trust=trust)
    paths = [
        f"{name} {values[name]}" for name in ("data_dir", "init", "teacher") if name in values and name not in options
    ]
    if paths and not trust and not was_written_here(path):
        raise InputError(
            f"was not written on this machine and names files outside its folder: {', '.join(paths)}",
            where=path,
            hint="pass --trust if you know who wrote it",
        )


def _mistake(entry: Any) -> str:
    where = ".".join(str(part) for part in entry["loc"])
    if entry["type"] == "extra_forbidden":
        return f"{where}: no such setting"
    message = str(entry["msg"]).removeprefix("Value error, ")
    if entry["type"] == "value_error":
        return f"{where}: {message}" if where else message
    return f"{where} = {entry['input']!r}: {message[:1].lower()}{message[1:]}"


def _canonical(text: str) -> str:
    return str(_or_value_error(lambda: NMPattern.parse(text)))


def _or_value_error(check: Callable[[], T]) -> T:
    """Pydantic gathers ValueErrors."""
    try:
        return check()
    except ConfigError as error:
        raise ValueError(str(error)) from None
