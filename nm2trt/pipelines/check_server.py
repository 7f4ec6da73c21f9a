"""Check that a running server serves a build."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from nm2trt.artifacts.files import check_output, staged_folder
from nm2trt.artifacts.server_report import OutputsRecord, SaturationRecord, ServerReportDocument
from nm2trt.pipelines.progress import ignore_progress
from nm2trt.report.server_page import LOAD_COLUMNS, load_cells, server_page
from nm2trt.serve import check
from nm2trt.serve.address import Tls
from nm2trt.serve.check import CheckConfig

__all__ = [
    "LOAD_COLUMNS",
    "CheckConfig",
    "OutputsRecord",
    "SaturationRecord",
    "ServerReportDocument",
    "Tls",
    "check_server",
    "load_cells",
]

logger = logging.getLogger(__name__)

PAGE = "server.html"


def check_server(
    config: CheckConfig,
    output: Path | None = None,
    *,
    force: bool = False,
    progress: Callable[[str], object] | None = None,
) -> ServerReportDocument:
    """Ask a server for its description and its outputs, compare both with a build, and measure it under load.

    Args:
        config: Which server and model, what it should serve, and what to send.
        output: Folder for server.json and server.html, whole or not at all; None: nothing is written.
        force: Replace a folder that nm2trt wrote.
        progress: Told what is being done.

    Returns:
        What was found; latencies in milliseconds, throughput in requests a second. `verdict` is "pass" or "fail".

    Raises:
        ConfigError: The URL, a header or a shape is wrong, or the output exists.
        InputError: The build or the samples cannot be used, nothing listens there, or the model is not ready.
        MachineError: tritonclient is missing, and gRPC was asked for.

    Example:
        >>> from nm2trt import ExportConfig, export_network
        >>> from nm2trt.errors import InputError
        >>> _ = export_network(Path("model.onnx"), Path("build"), ExportConfig(builder="none"))
        >>> try:
        ...     check_server(CheckConfig(url="http://127.0.0.1:9", model="digits", build=Path("build")))
        ... except InputError as error:
        ...     print(error.what)  # doctest: +ELLIPSIS
        The server did not answer: ...
    """
    if output is not None:
        check_output(output, force=force)
    logger.debug("check %s at %s against %s", config.model, config.url, config.build)
    report = check.check_server(config, progress or ignore_progress)
    if output is not None:
        with staged_folder(output, force=force) as folder:
            report.write(folder)
            (folder / PAGE).write_text(server_page(report), encoding="utf-8")
    return report
