import math

import pytest
import torch

from nm2trt.training.loss_record import EpochLosses
from nm2trt.training.matmul_precision import matmul_precision


class Event:
    """A copy that is on its way until the test says that it has come."""

    arrived = False
    waited = 0

    def record(self):
        pass

    def query(self):
        return Event.arrived

    def synchronize(self):
        Event.waited += 1


def test_sums_and_records_are_those_of_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    losses = EpochLosses(torch.device("cpu"), loss_sum=3.5)
    expected, seen = 3.5, []
    for step in range(1, 20):
        loss = torch.rand((), generator=generator)
        samples = step % 3 + 1
        losses.add(loss, samples)
        expected += float(loss) * samples
        losses.record(loss, step=step, epoch=1, rate=0.1)
        seen += [(one.step, one.loss, one.all_finite) for one in losses.ready()]
        assert seen[-1] == (step, float(loss), True)
    assert losses.total() == expected
    assert list(losses.ready(wait=True)) == []


def test_a_gpus_loss_is_read_when_it_has_come_and_never_waited_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, other, non_blocking: self.set_(other.clone()))
    real = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **more: real(*size, **more))
    losses = EpochLosses(torch.device("cpu"))
    losses._on_gpu = True
    for step in (1, 2):
        losses.add(torch.tensor(float(step)), 1)
        losses.record(torch.tensor(float(step)), step=step, epoch=1, rate=0.1)
        assert list(losses.ready()) == []
    assert Event.waited == 0
    assert [one.step for one in losses.ready(wait=True)] == [1, 2]
    assert Event.waited == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_between_two_records_is_found_at_the_next(bad):
    losses = EpochLosses(torch.device("cpu"))
    losses.add(torch.tensor(bad), 4)
    losses.add(torch.tensor(1.0), 4)
    losses.record(torch.tensor(1.0), step=2, epoch=1, rate=0.1)
    (one,) = losses.ready()
    assert one.loss == 1.0
    assert not one.all_finite


def test_tf32_is_for_the_run_only():
    before = torch.get_float32_matmul_precision()
    with matmul_precision(tf32=True):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
    with matmul_precision(tf32=False):
        assert torch.get_float32_matmul_precision() == before


@pytest.mark.gpu
@pytest.mark.parametrize("channels_last", [False, True])
def test_an_epoch_on_a_gpu_never_waits_for_it(monkeypatch, tmp_path, channels_last):
    from nm2trt.training.config import TrainConfig
    from nm2trt.training.loop import Trainer
    from nm2trt.training.run import train

    batch = Trainer._batch
    batches = []

    def watched(self, *arguments):
        # The first batches compile kernels and make the optimizer's state.
        batches.append(1)
        torch.cuda.set_sync_debug_mode("error" if len(batches) > 3 else "default")
        try:
            batch(self, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "_batch", watched)
    config = TrainConfig(epochs=2, batch_size=64, precision="bf16", channels_last=channels_last, tf32=True)
    document = train(config, tmp_path / "run")
    assert len(batches) > 20
    assert document.result.test_score > 0.3
    assert "H" in document.device or "NVIDIA" in document.device
