"""The callback in a real Lightning Trainer, against a plain loop over the same batches."""

import csv

import pytest
import torch
from helpers import nm2trt_inline
from torch import nn

pytest.importorskip("lightning.pytorch", reason="missing: lightning (pip install 'nm2trt[lightning]')")

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from nm2trt.errors import ConfigError
from nm2trt.integrations.lightning import SparsifyCallback
from nm2trt.training import sparsify

X = torch.randn(48, 16, generator=torch.Generator().manual_seed(1))
Y = (X[:, :4].sum(1) > 0).long()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = network()

    def training_step(self, batch, _index):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2), "interval": "epoch"}]


class TwoOptimizers(Module):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.critic = network()

    def training_step(self, batch, index):
        super().training_step(batch, index).backward()
        self.optimizers()[1].step()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.critic, self.net)]


def loader():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=8)


def fitted(folder, *, epochs=4, module=None, ckpt=None, callback=None, **options):
    callback = callback or SparsifyCallback("2:4", decay=1e-2, freeze_from=0.75)
    module = module or Module()
    saver = ModelCheckpoint(folder, save_last=True)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        logger=False,
        callbacks=[callback, saver],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(module, loader(), ckpt_path=ckpt)
    return trainer, module, callback


CIRCUMSTANCES = [
    {},
    {"precision": "bf16-mixed"},
    {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5},
]


@pytest.mark.parametrize("options", CIRCUMSTANCES)
def test_the_trainer_does_what_a_loop_with_sparsify_does(tmp_path, options):
    trainer, module, callback = fitted(tmp_path, epochs=2, callback=SparsifyCallback("2:4", decay=1e-2), **options)
    count = options.get("accumulate_grad_batches", 1)
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    sparsifier = sparsify(net, optimizer, "2:4", decay=1e-2)
    for _ in range(2):
        for index, (x, y) in enumerate(loader()):
            with torch.autocast("cpu", torch.bfloat16, enabled="precision" in options):
                loss = nn.functional.cross_entropy(net(x), y) / count
            loss.backward()
            if (index + 1) % count == 0:
                if "gradient_clip_val" in options:
                    nn.utils.clip_grad_norm_(net.parameters(), options["gradient_clip_val"])
                optimizer.step()
                optimizer.zero_grad()
    assert callback.sparsifier.steps == sparsifier.steps == 12 // count == trainer.global_step
    for (name, ours), (_, plain) in zip(module.net.state_dict().items(), net.state_dict().items(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-7, msg=name)
    assert callback.sparsifier.record_sad().total.flips == sparsifier.record_sad().total.flips > 0


@pytest.mark.not_quick
@pytest.mark.parametrize("options", CIRCUMSTANCES)
def test_a_resumed_fit_ends_as_one_that_never_stopped(tmp_path, options):
    _, whole, before = fitted(tmp_path / "whole", **options)
    checkpoint = tmp_path / "part.ckpt"

    class Stop(SparsifyCallback):
        def on_train_epoch_end(self, trainer, pl_module):
            super().on_train_epoch_end(trainer, pl_module)
            if trainer.current_epoch == 1:
                trainer.should_stop = True

    trainer, _, _ = fitted(tmp_path / "cut", callback=Stop("2:4", decay=1e-2, freeze_from=0.75), **options)
    trainer.save_checkpoint(checkpoint)
    assert trainer.current_epoch == 2
    _, resumed, after = fitted(tmp_path / "resumed", ckpt=checkpoint, **options)
    for (name, a), (_, b) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    for name, residual in before.sparsifier.residuals().items():
        assert torch.equal(residual, after.sparsifier.residuals()[name])
        assert residual.count_nonzero() > 0
    before.write_sad(tmp_path / "before.csv")
    after.write_sad(tmp_path / "after.csv")
    assert (tmp_path / "before.csv").read_text() == (tmp_path / "after.csv").read_text()


def test_the_checkpoint_verifies_and_sad_is_logged(tmp_path):
    trainer, _module, callback = fitted(tmp_path)
    names = list(callback.sparsifier.patterns())
    assert names == ["net.0.weight", "net.2.weight"]
    result = nm2trt_inline("verify", tmp_path / "last.ckpt", "--require", "*net.0.weight", "--require", "*net.2.weight")
    assert result.returncode == 0, result.stdout + result.stderr
    callback.write_sad(tmp_path / "sad.csv")
    rows = [row for row in csv.DictReader((tmp_path / "sad.csv").open()) if row["layer"] == "total"]
    assert [float(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert float(trainer.callback_metrics["sad_start"]) == pytest.approx(float(rows[-1]["sad_start_normalized"]))


def test_with_several_optimizers_one_has_to_be_named(tmp_path):
    with pytest.raises(ConfigError, match="2 optimizers, optimizer_index is None"):
        fitted(tmp_path, module=TwoOptimizers(), epochs=1)
    callback = SparsifyCallback("2:4", module="net", optimizer_index=1)
    fitted(tmp_path, module=TwoOptimizers(), epochs=1, callback=callback)
    assert set(callback.sparsifier.patterns()) == {"0.weight", "2.weight"}
    assert callback.sparsifier.steps == 6
    with pytest.raises(ConfigError, match="has no module 'body'"):
        fitted(tmp_path, epochs=1, callback=SparsifyCallback("2:4", module="body"))
