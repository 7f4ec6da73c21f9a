"""Opens a connection to a server by either of its protocols."""

from __future__ import annotations

from nm2trt.artifacts import GraphPort
from nm2trt.artifacts.server_report import Protocol as ProtocolName
from nm2trt.errors import MachineError
from nm2trt.serve.address import Address
from nm2trt.serve.client import TIMEOUT_S, Client
from nm2trt.serve.http_client import HttpClient


def open_client(
    protocol: ProtocolName,
    address: Address,
    model: str,
    version: str,
    inputs: tuple[GraphPort, ...],
    *,
    timeout_s: float = TIMEOUT_S,
    as_json: bool = False,
) -> Client:
    """Open a connection; nothing is sent yet.

    Args:
        protocol: Which.
        address: Of the server.
        model: Name.
        version: Asked for; empty: the server's choice.
        inputs: The graph's.
        timeout_s: Of one request, seconds.
        as_json: HTTP only: tensors as JSON numbers instead of Triton's binary extension.

    Raises:
        MachineError: gRPC was asked for, and tritonclient is missing.
    """
    if protocol == "http":
        return HttpClient(address, model, version, inputs, timeout_s, as_json=as_json)
    try:
        import tritonclient.grpc as module
    except ImportError as error:
        raise MachineError(
            f"tritonclient is missing ({error})", hint="pip install 'nm2trt[server]', or --protocol http"
        ) from None
    from nm2trt.serve.grpc_client import GrpcClient

    return GrpcClient(module, address, model, version, inputs, timeout_s)
