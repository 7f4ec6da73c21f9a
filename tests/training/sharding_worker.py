"""Run by test_sharding.py under torchrun: a sharded run, the same run cut off, and its resumption."""

import sys
from pathlib import Path

from nm2trt.training.config import load_config
from nm2trt.training.run import train


class Cut(BaseException):
    """Stands for whatever ends a process; here all processes at the same step."""


def cut(done, _of, _words):
    if done == 8:
        raise Cut


def main(folder):
    options = {"model": "resnet8", "epochs": 3, "batch_size": 128, "device": "cpu", "fsdp": True}
    config = load_config(None, options)
    train(config, folder / "whole")
    try:
        train(config, folder / "cut", progress=cut)
    except Cut:
        train(config, folder / "cut", resume=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
