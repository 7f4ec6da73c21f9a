"""`--teacher`: a trained network whose outputs the one in training is pulled towards.

Loss = weight * KL(teacher || student) + (1 - weight) * task, as in Huang et al., "Pruning Large Language Models with
Semi-Structural Adaptive Sparse Training" (AAAI 2025), with the temperature of Hinton et al. (2015).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nm2trt.artifacts import RunDocument, sha256_of
from nm2trt.artifacts.code_trust import check_code
from nm2trt.artifacts.run import TeacherRecord
from nm2trt.data import DataSet
from nm2trt.errors import InputError
from nm2trt.models import build_model
from nm2trt.training import checkpoint
from nm2trt.training.config import TrainConfig
from nm2trt.training.init import load_init


@dataclass(frozen=True, slots=True)
class Teacher:
    """A network that teaches.

    Attributes:
        network: In evaluation mode, without gradients.
        weight: Of the divergence in the loss; the task has the rest.
        temperature: Divides both networks' logits.
        record: For run.json.
    """

    network: nn.Module
    weight: float
    temperature: float
    record: TeacherRecord

    def place(self, device: torch.device, memory_format: torch.memory_format) -> Teacher:
        """The same on a device, in a memory format."""
        self.network.to(device).to(memory_format=memory_format)
        return self

    @torch.no_grad()
    def logits(self, x_BX: torch.Tensor, calls: Any) -> torch.Tensor:
        """What it answers to a batch.

        Args:
            x_BX: The batch.
            calls: `NetworkCalls`.
        """
        answer: torch.Tensor = calls.forward(self.network, x_BX)
        return answer

    def loss(self, student: torch.Tensor, teacher: torch.Tensor, task_loss: torch.Tensor) -> torch.Tensor:
        """The loss that the student is trained by, a scalar.

        Args:
            student: Logits, classes last, any float dtype.
            teacher: Logits of the same shape.
            task_loss: Mean of the task's own losses.

        Raises:
            InputError: The shapes differ.
        """
        if student.shape != teacher.shape:
            raise InputError(
                f"answers {list(teacher.shape)} where the network in training answers {list(student.shape)}",
                where=f"teacher {self.record.name}",
                hint="give a teacher of the same outputs",
            )
        divergence = distillation_divergence(student, teacher, self.temperature)
        return self.weight * divergence + (1 - self.weight) * task_loss


def distillation_divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), the mean over all positions; a float32 scalar.

    Args:
        student: Logits [..., classes].
        teacher: Logits of the same shape.
        temperature: T, above 0.
    """
    wide = torch.promote_types(student.dtype, torch.float32)
    student_log, teacher_log = (F.log_softmax(logits.to(wide) / temperature, dim=-1) for logits in (student, teacher))
    total = F.kl_div(student_log, teacher_log, log_target=True, reduction="sum")
    return total * (temperature**2 / (student.numel() / student.shape[-1]))


def load_teacher(config: TrainConfig, data: DataSet, *, trust: bool = False) -> Teacher | None:
    """Read the teacher that a configuration names; None where it names none. Random numbers are left alone.

    Args:
        config: Of the run that is to be taught.
        data: What both networks take.
        trust: Import the code that the teacher's run.json names although this machine did not write it.

    Raises:
        InputError: It is missing or unreadable; a run of other data shapes or classes; or a file that does not fit
            the network.
    """
    if config.teacher is None:
        return None
    path, name = config.teacher, config.model
    if path.is_dir():
        if not (path / RunDocument.FILE).is_file():
            raise InputError(
                f"holds no {RunDocument.FILE}, so it is no run that was trained to its end",
                where=f"teacher {path}",
                hint="give a finished run folder or a checkpoint of the same --model",
            )
        document = RunDocument.read(path)
        name = document.model.name
        if name != config.model:
            check_code(path / RunDocument.FILE, {"model": name}, trust=trust)
        found = (tuple(document.model.input_shape), document.model.classes)
        if found != (tuple(data.input_shape), data.classes):
            raise InputError(
                f"takes {list(found[0])} and tells {found[1]} classes apart, and {data.name} has "
                f"{list(data.input_shape)} and {data.classes}",
                where=f"teacher {path}",
                hint="give a run on the same data",
            )
    with torch.random.fork_rng():
        network = build_model(name, data.input_shape, data.classes)
    load_init(network, path, option="--teacher")
    network.eval().requires_grad_(requires_grad=False)
    file = path / checkpoint.FILE if path.is_dir() else path
    record = TeacherRecord(name=path.name, model=name, checkpoint_sha256=sha256_of(file))
    return Teacher(network, config.teacher_weight, config.teacher_temperature, record)
