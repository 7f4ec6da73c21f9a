"""`nm2trt train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nm2trt.cli.common import force_option, output_option, threads_option
from nm2trt.cli.json_output import json_option, print_json


@click.command(name="train")
@click.option("--config", type=click.Path(path_type=Path), metavar="F.toml", help="Read settings; options win.")
@click.option(
    "--recipe",
    metavar="NAME",
    help="Settings to start from; F.toml and options win. imagenet-paper: SR-STE's own, batch 256, 120 epochs, lr 0.1, "
    "5 warm-up epochs, weight decay 5e-5, lambda 2e-4. finetune: from --init, 10 epochs, lr 0.01, weight decay 5e-5. "
    "transformer: AdamW, 10 epochs, batch 256, lr 1e-3, weight decay 0.01.",
)
@click.option(
    "--data",
    metavar="NAME",
    help="digits (default), fashion-mnist, cifar10, cifar100, imagefolder, cmudict (letters to phonemes), or "
    "package.module:function of your own.",
)
@click.option("--data-dir", type=click.Path(path_type=Path), metavar="DIR", help="Where the data's files are.")
@click.option("--image-size", metavar="N", help="Height and width of imagefolder's samples; default 224.")
@click.option("--randaugment/--no-randaugment", default=None, help="RandAugment on imagefolder's training images.")
@click.option("--workers", metavar="N", help="Processes that read samples; default: the cores for files, else 0.")
@click.option(
    "--model",
    metavar="NAME",
    help="resnet8 (default), resnet20, resnet32, resnet56, resnet18-cifar, mlp, encoder-small; torchvision's by "
    "name (resnet50, vit_b_16, ...); timm:NAME; or package.module:factory of your own.",
)
@click.option(
    "--init",
    type=click.Path(path_type=Path),
    metavar="CHECKPOINT",
    help="Weights to start from: safetensors, a torch state dict, or a run folder.",
)
@click.option(
    "--hold-masks/--no-hold-masks",
    default=None,
    help="Take the masks from --init's weights as they are and hold them; for checkpoints that are N:M already.",
)
@click.option(
    "--teacher",
    type=click.Path(path_type=Path),
    metavar="RUN|CHECKPOINT",
    help="Learn from a trained network's outputs, too: a run, or a checkpoint of the same --model.",
)
@click.option("--teacher-weight", metavar="X", help="Share of the teacher in the loss; default 0.67.")
@click.option("--teacher-temperature", metavar="X", help="Divides both networks' logits; default 1.")
@click.option(
    "--method",
    metavar="NAME",
    help="sr-ste (default with sgd), step (default with adamw), ste, s-ste, decaying-mask, asp or dense.",
)
@click.option("--pattern", metavar="N:M", help="N weights kept of every M; default 2:4.")
@click.option("--layer", "layers", multiple=True, metavar="GLOB=N:M", help="Another pattern for these modules.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Modules that stay dense.")
@click.option("--mask-update-interval", metavar="K", help="Optimizer steps between new masks; default 1.")
@click.option("--refresh-every", hidden=True)  # What it was called before.
@click.option("--freeze-epochs", metavar="N", help="Hold the masks in the last N epochs; default 0.")
@click.option("--dense-epochs", metavar="N", help="With asp: epochs before pruning; default half of them.")
@click.option("--decay", metavar="X", help="lambda of SR-STE; default 2e-4, the paper's.")
@click.option("--decay-warmup", metavar="X", help="Share of all steps in which lambda grows from 0; default 0.")
@click.option("--mask-decay", metavar="NAME", help="Of decaying-mask: linear (default), exponential or structured.")
@click.option("--epochs", metavar="N", help="Default 30.")
@click.option("--batch-size", metavar="N", help="Samples per process and micro-batch; default 64.")
@click.option("--accumulation", metavar="N", help="Micro-batches per optimizer step; default 1.")
@click.option("--optimizer", metavar="NAME", help="sgd (default) or adamw.")
@click.option("--lr", metavar="X", help="Peak learning rate; default 0.05.")
@click.option("--momentum", metavar="X", help="Default 0.9.")
@click.option("--weight-decay", metavar="X", help="Default 5e-4.")
@click.option("--warmup-epochs", metavar="X", help="Default 1.")
@click.option("--precision", metavar="NAME", help="fp32 (default), or bf16 / fp16 automatic mixed precision.")
@click.option(
    "--channels-last/--no-channels-last", default=None, help="Weights and images in channels_last memory format."
)
@click.option(
    "--tf32/--no-tf32", default=None, help="Matrix products of float32 in TensorFloat-32, on GPUs that have it."
)
@click.option(
    "--fsdp/--no-fsdp",
    default=None,
    help="Shard weights and optimizer over the processes (FSDP2); under torchrun or accelerate launch.",
)
@click.option(
    "--log-with",
    multiple=True,
    metavar="NAME",
    help="Record live in tensorboard, mlflow, wandb, or another tracker of accelerate's; may be given again.",
)
@click.option("--tensorboard/--no-tensorboard", default=None, help="The same as --log-with tensorboard.")
@click.option("--device", metavar="NAME", help="auto (default) or cpu.")
@threads_option()
@click.option("--seed", metavar="N", help="Default 0.")
@click.option("--resume", is_flag=True, help="Go on from the state in RUN, to the end it would have come to.")
@click.option(
    "--auto-resume",
    is_flag=True,
    help="Start RUN, or go on with it where it is there: for jobs that are restarted (torchrun --max-restarts, SLURM).",
)
@click.option(
    "--trust",
    is_flag=True,
    help="Import the code that RUN (resumed) or --teacher names though not started here.",
)
@output_option("RUN", "Folder to make.")
@force_option
@json_option
def command(output: Path, *, force: bool, as_json: bool, **options: Any) -> int:
    """Train a network N:M sparse and record how its masks moved (SAD).

    Ctrl-C and SIGTERM save the state first; --resume goes on from it, or from the last epoch's end.

    RUN gets checkpoint.safetensors (a plain state dict whose weights are N:M), config.toml, metrics.jsonl,
    sad.csv, curves.png and run.json.

    \b
    nm2trt train -o runs/digits
    nm2trt train --data fashion-mnist --epochs 3 --batch-size 128 -o runs/fashion
    """
    _check_resuming(options, force=force)
    how = {name: options.pop(name) for name in ("config", "resume", "auto_resume", "trust")}
    given = _given_options(options)
    from nm2trt.cli.render.progress import training_progress
    from nm2trt.pipelines.train import is_first_process, process_group_ends, settle_start, train_network

    start = settle_start(output, given, **how)
    with process_group_ends(), training_progress(start.config.method) as progress:
        document = train_network(
            start.config, output, force=force, resume=start.resume, trust=how["trust"], progress=progress
        )
    if not is_first_process():
        return 0
    if as_json:
        print_json(document.to_json())
    else:
        from nm2trt.cli.render.train import print_run

        print_run(document, output)
    return 0


def _check_resuming(options: dict[str, Any], *, force: bool) -> None:
    from nm2trt.errors import ConfigError

    if options["resume"] and (force or options["config"] is not None):
        raise ConfigError("--resume takes RUN's own config.toml", hint="leave --config and --force out")
    if options["auto_resume"] and (force or options["resume"]):
        raise ConfigError("--auto-resume decides itself whether RUN is started", hint="leave --resume and --force out")


def _given_options(options: dict[str, Any]) -> dict[str, Any]:
    """Keep what the user typed; a configuration file answers for the rest."""
    from nm2trt.errors import ConfigError

    layers = dict(entry.rpartition("=")[::2] for entry in options.pop("layers"))
    if "" in layers:
        raise ConfigError(f"--layer {layers['']!r} has no '='", hint="write GLOB=N:M, such as 'layers.2.*=1:4'")
    return {name: value for name, value in {"layers": layers or None, **options}.items() if value not in (None, ())}
