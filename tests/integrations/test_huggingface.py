"""The callback in a real Hugging Face Trainer, against a plain loop over the same batches."""

import csv
import subprocess
import sys

import pytest
import torch
from helpers import nm2trt_inline
from torch import nn

transformers = pytest.importorskip("transformers", reason="missing: transformers (pip install 'nm2trt[huggingface]')")

from nm2trt.errors import ConfigError, InputError  # noqa: E402
from nm2trt.integrations.huggingface import SparsifyCallback  # noqa: E402
from nm2trt.training import sparsify  # noqa: E402

X = torch.randn(48, 16, generator=torch.Generator().manual_seed(1))
Y = (X[:, :4].sum(1) > 0).long()


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return {"x": X[index], "labels": Y[index]}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden1, self.hidden2, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 2)

    def forward(self, x, labels):
        logits = self.head(torch.relu(self.hidden2(torch.relu(self.hidden1(x)))))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def arguments(folder, **options):
    defaults = {
        "num_train_epochs": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "save_strategy": "epoch",
        "logging_strategy": "epoch",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 3,
    }
    return transformers.TrainingArguments(output_dir=str(folder), **{**defaults, **options})


def trained(folder, *, resume=None, callback=None, model=None, **options):
    callback = callback or SparsifyCallback("2:4", decay=1e-2)
    trainer = transformers.Trainer(
        model or Net(), arguments(folder, **options), train_dataset=Rows(), callbacks=[callback]
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, callback


def most_kept(weight):
    return max(sum(v != 0 for v in row[s : s + 4]) for row in weight.tolist() for s in range(0, len(row), 4))


def assert_same(one, other):
    for (name, a), (_, b) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"gradient_accumulation_steps": 2}])
def test_the_trainer_does_what_a_loop_with_sparsify_does(tmp_path, options, monkeypatch):
    batches = []
    forward = Net.forward

    def recorded(self, x, labels):
        batches.append((x.clone(), labels.clone()))
        return forward(self, x, labels)

    monkeypatch.setattr(Net, "forward", recorded)
    trainer, callback = trained(tmp_path, num_train_epochs=2, max_grad_norm=1.0, **options)
    monkeypatch.undo()
    count = options.get("gradient_accumulation_steps", 1)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.0)
    sparsifier = sparsify(net, optimizer, "2:4", decay=1e-2)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 0, 12 // count)
    batches = batches[-12:]  # sparsify has tried the network before
    for index, (x, labels) in enumerate(batches):
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in options):
            loss = net(x, labels)["loss"] / count
        loss.backward()
        if (index + 1) % count == 0:
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    assert callback.sparsifier.steps == sparsifier.steps == 12 // count
    for (name, ours), (_, plain) in zip(trainer.model.state_dict().items(), net.state_dict().items(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6, msg=name)
    assert callback.sparsifier.record_sad().total.flips == sparsifier.record_sad().total.flips > 0


@pytest.mark.parametrize("options", [{}, {"bf16": True, "gradient_accumulation_steps": 2}])
def test_a_resumed_training_ends_as_one_that_never_stopped(tmp_path, options):
    def callback():
        return SparsifyCallback("2:4", "sr-ste", decay=1e-2, freeze_from=0.75)

    whole, before = trained(tmp_path / "whole", callback=callback(), **options)
    steps = whole.state.global_step

    class Stop(transformers.TrainerCallback):
        def on_save(self, args, state, control, **_):
            control.should_training_stop = True

    stopped = transformers.Trainer(
        Net(), arguments(tmp_path / "cut", **options), train_dataset=Rows(), callbacks=[callback(), Stop()]
    )
    stopped.train()
    assert stopped.state.global_step == steps // 4
    resumed, after = trained(tmp_path / "cut", resume=True, callback=callback(), **options)
    assert_same(whole.model, resumed.model)
    for name, mask in before.sparsifier.masks().items():
        assert torch.equal(mask, after.sparsifier.masks()[name])
        assert torch.equal(before.sparsifier.residuals()[name], after.sparsifier.residuals()[name])
    assert (tmp_path / "cut/sad.csv").read_text() == (tmp_path / "whole/sad.csv").read_text()


def test_sad_stands_in_the_history_and_in_sad_csv(tmp_path):
    trainer, callback = trained(tmp_path)
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    rows = [row for row in csv.DictReader((tmp_path / "sad.csv").open()) if row["layer"] == "total"]
    assert len(entries) == len(rows) == 4
    for entry, row in zip(entries, rows, strict=True):
        assert entry["sad_start"] == pytest.approx(float(row["sad_start_normalised"]))
        assert entry["step"] == int(row["step"])
    assert entries[-1]["flips_per_weight"] == pytest.approx(callback.sparsifier.record_sad().total.flips_per_weight)


def test_every_checkpoint_folder_verifies_and_loads(tmp_path):
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )

    class Words(torch.utils.data.Dataset):
        def __len__(self):
            return 16

        def __getitem__(self, index):
            return {"input_ids": torch.arange(8) + index % 8, "labels": torch.tensor(index % 2)}

    model = transformers.BertForSequenceClassification(config)
    callback = SparsifyCallback("2:4")
    transformers.Trainer(
        model, arguments(tmp_path, num_train_epochs=1), train_dataset=Words(), callbacks=[callback]
    ).train()
    folder = tmp_path / "checkpoint-2"
    result = nm2trt_inline("verify", folder, "--require", "*.query.weight", "--require", "*.output.dense.weight")
    assert result.returncode == 0, result.stdout + result.stderr
    again = transformers.BertForSequenceClassification.from_pretrained(folder)
    sparse = callback.sparsifier.patterns()
    assert sparse
    loaded = again.state_dict()
    assert {most_kept(loaded[name]) for name in sparse} == {2}


def test_a_checkpoint_elsewhere_has_to_be_named(tmp_path):
    trained(tmp_path / "first")
    moved = (tmp_path / "first/checkpoint-12").rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="resume_from=FOLDER"):
        trained(tmp_path / "second", resume=str(moved))
    callback = SparsifyCallback("2:4", decay=1e-2, resume_from=moved)
    trained(tmp_path / "second", resume=str(moved), callback=callback)
    assert callback.sparsifier.steps == 24


def test_a_checkpoint_without_our_state_starts_the_masks_and_says_so(tmp_path):
    trained(tmp_path)
    for step in (18, 24):
        (tmp_path / f"checkpoint-{step}/sparsifier.pt").unlink()
    with pytest.warns(UserWarning, match=r"has no sparsifier\.pt"):
        _, callback = trained(tmp_path, resume=str(tmp_path / "checkpoint-18"))
    assert callback.sparsifier.steps == 6
    (tmp_path / "checkpoint-18/sparsifier.pt").write_bytes(b"no zip")
    with pytest.raises(InputError, match="no readable state"):
        trained(tmp_path, resume=str(tmp_path / "checkpoint-18"))


def test_all_wrong_arguments_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        SparsifyCallback("2:4", "magic", freeze_from=3, speed=1)
    assert all(word in str(caught.value) for word in ("speed", "magic", "freeze_from"))


@pytest.mark.parametrize(("module", "library"), [("huggingface", "transformers"), ("lightning", "lightning")])
def test_without_the_library_one_line_names_the_extra(module, library):
    script = f"import sys; sys.modules[{library!r}] = None\nimport nm2trt.integrations.{module}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    last = result.stderr.strip().splitlines()[-1]
    assert "MachineError" in last
    assert last.endswith(f"{library} is not installed; pip install 'nm2trt[{module}]'")
