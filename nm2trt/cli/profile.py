"""`nm2trt profile`: dense against sparse, timed on this machine or read from others' files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nm2trt.cli.common import force_option, output_option, schema_option, stderr_console, threads_option
from nm2trt.cli.json_output import json_option, print_json

if TYPE_CHECKING:
    from nm2trt.artifacts import ReportDocument

_PATH = click.Path(path_type=Path)


def _document() -> type[ReportDocument]:
    from nm2trt.artifacts import ReportDocument

    return ReportDocument


@click.command()
@click.argument("sources", metavar="[SOURCE | DENSE.log SPARSE.log]", type=_PATH, nargs=-1)
@click.option(
    "--dense",
    metavar="BUILD_OR_ONNX",
    type=_PATH,
    help="The dense-trained network: same graph, same precision. Without it, the sparse network's zeros are filled.",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "onnxruntime", "tensorrt", "tensorrt-rtx", "torch-sparse"]),
    default="auto",
    show_default=True,
    help="What runs the networks.",
)
@click.option(
    "--provider",
    type=click.Choice(["auto", "cpu", "cuda", "tensorrt"]),
    default="auto",
    show_default=True,
    help="ONNX Runtime's execution provider.",
)
@click.option(
    "--mode",
    "modes",
    metavar="M,M,..",
    default="eager,compiled,cuda-graph",
    show_default=True,
    help="How PyTorch executes the network (torch-sparse).",
)
@click.option(
    "--precision",
    type=click.Choice(["fp16", "bf16"]),
    default="fp16",
    show_default=True,
    help="Dtype of the network (torch-sparse); elsewhere it is the file's.",
)
@click.option("--model", metavar="NAME", help="Network of a checkpoint, as `nm2trt export` takes it (torch-sparse).")
@click.option("--input-shape", metavar="C,H,W", help="One sample of a checkpoint's network with one input.")
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME=SHAPE[:DTYPE]", help="One input of several, as in export."
)
@click.option("--classes", type=int, metavar="N", help="Classes of a checkpoint's network. Default: its weights'.")
@click.option("--batch", "batches", metavar="N,N,..", default="1,8,32", show_default=True, help="Batch sizes.")
@click.option(
    "--shape",
    "shapes",
    metavar="INPUT=1x3x224x224",
    multiple=True,
    help="Values of an input's dynamic dimensions; the first number gives way to --batch.",
)
@click.option(
    "--duration", "duration_s", metavar="S", type=float, default=6.0, show_default=True, help="Seconds per batch size."
)
@click.option("--rebuilds", type=int, default=1, show_default=True, help="How many builds of every variant are timed.")
@click.option("--reference", metavar="RUN", type=_PATH, help="Run folder: time its network in PyTorch, too.")
@click.option("--layers/--no-layers", default=True, show_default=True, help="Time single layers in a run apart.")
@click.option("--streams", type=int, default=0, help="Measure under load, too, with so many concurrent streams.")
@click.option(
    "--rate",
    "rates",
    metavar="R,R,..",
    default="",
    help="Requests a second under load.  [default: 50, 70 and 90 % of what the slower variant can do]",
)
@click.option(
    "--trust",
    is_flag=True,
    help="Load plans whose sha256 build.json does not vouch for, and import code that a run names: you made them.",
)
@click.option("--trtexec-sparse", metavar="PREFIX", type=_PATH, help="Report on trtexec's files instead: sparse run.")
@click.option("--trtexec-dense", metavar="PREFIX", type=_PATH, help="The same of the dense engine.")
@click.option("--trtexec-again", metavar="PREFIX", type=_PATH, help="A second run of the sparse engine: the noise.")
@click.option("--layer-times", metavar="F.csv", type=_PATH, help="Report on a table of layer times instead.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of inputs, order of the runs, and statistics.")
@schema_option(_document, "report.json")
@output_option("REPORT", "Folder to write: report.json, report.html.")
@force_option
@threads_option(sleep=False)
@json_option
@click.pass_context
def command(context: click.Context, /, output: Path, *, force: bool, as_json: bool, **options: Any) -> int:
    """Time a sparse-trained network against a dense one.

    The variants run in turns, in shuffled order: dense, sparse, and sparse once more; on TensorRT also the sparse
    weights without sparse kernels. The repeated variant is the noise floor: a difference counts only where it is larger
    than the difference of a network to itself. Then every layer is timed, in a run of its own.

    SOURCE is a folder of `nm2trt export` or an ONNX file. With --backend torch-sparse it may also be a run folder or a
    checkpoint with --model: the network runs in PyTorch, dense against torch's own 2:4 kernels, in every --mode; of an
    ONNX file only its matrix products do. With two logs of trtexec (or folders, or PREFIXes of its files), dense first,
    or with --trtexec-* or --layer-times, nothing is run: the report is made of what others measured.
    """
    from nm2trt.artifacts.files import check_output, staged_folder

    _place_sources(options)
    imported = any(options[key] for key in ("trtexec_sparse", "trtexec_dense", "trtexec_again", "layer_times"))
    config = _config(options)
    _check_source(options, imported=imported)
    _check_torch_options(context, options)
    check_output(output, force=force)
    if imported:
        report = _imported(options, config, _given(context, "batches"))
    else:
        report = _measured_in_torch(options, config) if config.backend == "torch-sparse" else _measured(options, config)
    from nm2trt.report.profile_page import profile_page

    with staged_folder(output, force=force) as folder:
        report.write(folder)
        (folder / "report.html").write_text(profile_page(report), encoding="utf-8")
    if as_json:
        print_json(report.to_json())
    else:
        from nm2trt.cli.render.profile import show

        show(report, output)
    return 0


def _place_sources(options: dict[str, Any]) -> None:
    """Tell the arguments apart: one network to run, or the files of trtexec's dense and sparse runs."""
    from nm2trt.errors import ConfigError

    sources: tuple[Path, ...] = options.pop("sources")
    options["source"] = None
    if len(sources) > 2:
        raise ConfigError(
            f"{len(sources)} arguments: name one network, or the dense and the sparse run of trtexec", where="profile"
        )
    if len(sources) < 2 and not (sources and _is_measurement(sources[0])):
        options["source"] = sources[0] if sources else None
        return
    if any(options[f"trtexec_{name}"] for name in ("dense", "sparse")) or options["layer_times"] is not None:
        raise ConfigError("two runs as arguments and --trtexec-* or --layer-times exclude each other", where="profile")
    network = next((path for path in sources if path.suffix == ".onnx" or (path / "build.json").exists()), None)
    if network is not None:
        raise ConfigError(f"{network} is a network, no run of trtexec", hint="give the dense network with --dense")
    if len(sources) == 2:
        options["trtexec_dense"], options["trtexec_sparse"] = sources
    else:
        options["trtexec_sparse"] = sources[0]


def _is_measurement(path: Path) -> bool:
    """Whether a file is one that trtexec writes; a network is none."""
    if not path.is_file() or path.suffix == ".onnx":
        return False
    from nm2trt.errors import InputError
    from nm2trt.evidence.recognize import FileKind, recognize

    try:
        return recognize(path).kind not in (FileKind.OTHER_JSON, FileKind.OTHER_TEXT)
    except InputError:
        return False


def _given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _config(options: dict[str, Any]) -> Any:
    from nm2trt.profile.config import profile_config

    keys = (
        "backend",
        "modes",
        "precision",
        "provider",
        "batches",
        "shapes",
        "duration_s",
        "rebuilds",
        "layers",
        "streams",
        "rates",
        "trust",
        "seed",
    )
    return profile_config(**{key: options[key] for key in keys})


def _check_source(options: dict[str, Any], *, imported: bool) -> None:
    from nm2trt.errors import ConfigError

    if not imported and options["source"] is None:
        raise ConfigError("nothing to profile", hint="name a build folder or ONNX file, or --trtexec-sparse PREFIX")
    if options["layer_times"] is not None and any(
        options[f"trtexec_{variant}"] for variant in ("sparse", "dense", "again")
    ):
        raise ConfigError("--layer-times and --trtexec-* exclude each other", hint="make two reports")
    if imported and (options["dense"] is not None or options["reference"] is not None):
        raise ConfigError("--dense and --reference are run, --trtexec-* and --layer-times are read", hint="choose one")


def _imported(options: dict[str, Any], config: Any, batch_given: bool) -> ReportDocument:
    from nm2trt.errors import ConfigError
    from nm2trt.profile.importers.trtexec import TrtexecPaths, import_table, import_trtexec

    if batch_given and len(config.batches) != 1:
        raise ConfigError("--batch: others' files hold one batch size", hint="name that one")
    batch = config.batches[0] if batch_given else None
    if options["layer_times"] is not None:
        if batch is None:
            raise ConfigError("a table does not tell its batch size", where="--layer-times", hint="add --batch N")
        return import_table(options["layer_times"], batch=batch, seed=config.seed)
    paths = TrtexecPaths(
        sparse=options["trtexec_sparse"], dense=options["trtexec_dense"], again=options["trtexec_again"]
    )
    return import_trtexec(paths, model=options["source"], batch=batch, seed=config.seed)


def _measured(options: dict[str, Any], config: Any) -> ReportDocument:
    from nm2trt.profile import profile

    with _Progress() as progress:
        report = profile(
            options["source"], config, dense=options["dense"], reference=options["reference"], progress=progress.update
        )
    words = f"backend: {report.backend_choice}"
    if report.runner.threads is not None:
        words += f"; CPU threads: {report.runner.threads}"
    stderr_console().print(words, style="dim", markup=False, soft_wrap=True)
    return report


_OF_TORCH = ("modes", "precision", "model", "input_shape", "inputs", "classes")
_NOT_OF_TORCH = ("provider", "rebuilds", "streams", "rates", "reference", "trust")


def _check_torch_options(context: click.Context, options: dict[str, Any]) -> None:
    from nm2trt.errors import ConfigError

    in_torch = options["backend"] == "torch-sparse"
    names = {parameter.name: parameter.opts[-1] for parameter in context.command.params}
    wrong = [names[name] for name in (_NOT_OF_TORCH if in_torch else _OF_TORCH) if _given(context, name)]
    if wrong:
        words = "does not go" if len(wrong) == 1 else "do not go"
        raise ConfigError(
            f"{', '.join(wrong)} {words} with --backend {options['backend']}",
            hint="leave it out" if in_torch else "use --backend torch-sparse, or leave it out",
        )


def _measured_in_torch(options: dict[str, Any], config: Any) -> ReportDocument:
    from nm2trt.cli.profile_torch_sparse import torch_network
    from nm2trt.profile.torch_sparse import profile_torch_sparse

    network = torch_network(options["source"], options, config.shapes)
    dense = None if options["dense"] is None else torch_network(options["dense"], options, config.shapes)
    with _Progress() as progress:
        return profile_torch_sparse(network, config, dense=dense, progress=progress.update)


class _Progress:
    """A bar for whatever is being measured, on a terminal only."""

    def __init__(self) -> None:
        from rich.progress import Progress, TimeElapsedColumn

        console = stderr_console()
        columns = (*Progress.get_default_columns(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("opening", total=1.0)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.stop()

    def update(self, what: str, share: float) -> None:
        self._bar.update(self._task, completed=share, description=what)
