"""PyTorch beside the others: the run's own network, and nothing that its manifest does not vouch for."""

import pytest
import torch
from run_folders import make_run

from nm2trt.errors import InputError
from nm2trt.profile.runners.torch_runner import TorchRunner, load_module


def test_the_run_s_own_network_runs(tmp_path):
    expected = make_run(tmp_path / "run", "mlp")
    module, shape = load_module(tmp_path / "run")
    x = torch.randn(3, *shape)
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected(x))
    runner = TorchRunner(module, shape, compiled=False)
    runner.prepare(3)
    assert runner.run_once() > 0
    assert runner.record.sparse_kernels is False
    assert runner.layer_profiler() is None
    for call in runner.streams(2):
        call()
    runner.close()


def test_a_changed_checkpoint_is_refused(tmp_path):
    make_run(tmp_path / "run", "mlp")
    with (tmp_path / "run" / "checkpoint.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match=r"not the checkpoint that run\.json names"):
        load_module(tmp_path / "run")


def test_a_network_that_fails_is_named():
    runner = TorchRunner(torch.nn.Linear(4, 4).eval(), (5,), compiled=False)
    with pytest.raises(InputError, match="fails at batch 2"):
        runner.prepare(2)
