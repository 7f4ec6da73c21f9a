"""The KServe v2 protocol over HTTP and gRPC behind one small interface, with answers that are read strictly."""

from __future__ import annotations

import errno
import http.client
import itertools
import json
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType, TracebackType
from typing import Any
from urllib.parse import quote

import numpy as np
from typing_extensions import Self

from nm2trt.artifacts import GraphPort
from nm2trt.artifacts.server_report import Protocol as ProtocolName
from nm2trt.errors import MachineError
from nm2trt.serve.address import Address
from nm2trt.serve.answers import (
    HEADER_LENGTH,
    Answer,
    Failure,
    RequestFailed,
    error_text,
    read_grpc_answer,
    read_http_answer,
    read_json_object,
)
from nm2trt.serve.ports import kserve_type
from nm2trt.serve.samples import Feed

TIMEOUT_S = 20.0
_HTTP_OK = 200
_IDLE_S = 1.0
"""A connection that was not used for so long is opened anew: servers close idle ones at any moment."""
_PIECE = 1 << 20
_GRPC_UNREACHABLE = ("failed to connect", "onnection refused", "resolution failed", "andshake")


class Client:
    """One connection, for one model.

    Args:
        address: Of the server.
        model: Name.
        version: Asked for; empty: the server's choice.
        inputs: The graph's.
        timeout_s: Of one request, seconds.
    """

    def __init__(
        self, address: Address, model: str, version: str, inputs: tuple[GraphPort, ...], timeout_s: float
    ) -> None:
        self._address, self._model, self._version = address, model, version
        self._types = {port.name: kserve_type(port.dtype) for port in inputs}
        self._timeout_s = timeout_s
        self._ids: Iterator[str] = (f"{id(self):x}-{number}" for number in itertools.count())
        self.padded: frozenset[str] = frozenset()
        """Inputs and outputs that the server describes with one more dimension of 1 than the graph: `reshape`."""
        self.expected_version = version
        """Answers of another version fail; empty: any."""
        self.names = frozenset({model})
        """What the server may call the model."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def infer(self, feed: Feed) -> Feed:
        """Ask once.

        Args:
            feed: Input name -> array, as the graph has them.

        Returns:
            Output name -> array, as the graph has them; names, types and shapes are the server's.

        Raises:
            RequestFailed: No answer, or not one to this request.
        """
        return self.ask(feed).outputs

    def ask(self, feed: Feed) -> Answer:
        """As `infer`, with what the server says of its answer.

        Raises:
            RequestFailed: No answer, or not one to this request.
        """
        request_id = next(self._ids)
        sent = {name: value[..., None] if name in self.padded else value for name, value in feed.items()}
        answer = self._infer(sent, request_id)
        for what, found, right in (
            ("id", answer.request_id, {request_id}),
            ("model", answer.model, self.names),
            ("version", answer.version, {self.expected_version} if self.expected_version else {answer.version}),
        ):
            if found and found not in right:
                raise RequestFailed(Failure.FOREIGN, f"{what} {found!r}, not {' or '.join(map(repr, sorted(right)))}")
        outputs = {
            name: value[..., 0] if name in self.padded and value.shape[-1:] == (1,) else value
            for name, value in answer.outputs.items()
        }
        return replace(answer, outputs=outputs)

    def metadata(self) -> dict[str, Any]:
        """Return the model's metadata.

        Raises:
            RequestFailed: No answer.
        """
        raise NotImplementedError

    def server(self) -> dict[str, Any]:
        """Return the server's metadata.

        Raises:
            RequestFailed: No answer.
        """
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """Return the model's configuration; empty where the server does not have Triton's extension for it."""
        raise NotImplementedError

    def check_live(self) -> bool:
        """Whether the server is live.

        Raises:
            RequestFailed: No answer.
        """
        raise NotImplementedError

    def check_ready(self) -> bool:
        """Whether the model is ready.

        Raises:
            RequestFailed: No answer.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Give the connection up."""

    def _infer(self, feed: Feed, request_id: str) -> Answer:
        raise NotImplementedError


class HttpClient(Client):
    """HTTP, over the standard library: no proxy of the environment, and no byte of an answer unread."""

    def __init__(
        self,
        address: Address,
        model: str,
        version: str,
        inputs: tuple[GraphPort, ...],
        timeout_s: float,
        *,
        as_json: bool = False,
    ) -> None:
        super().__init__(address, model, version, inputs, timeout_s)
        self._as_json = as_json
        self._path = f"/models/{quote(model, safe='')}" + (f"/versions/{quote(version, safe='')}" if version else "")
        self._used = 0.0
        self._connection: http.client.HTTPConnection
        if address.tls is not None:
            self._connection = http.client.HTTPSConnection(
                address.host, address.port, timeout=timeout_s, context=address.tls.context()
            )
        else:
            self._connection = http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)

    def metadata(self) -> dict[str, Any]:
        """Return the model's metadata."""
        return self._document(self._path)

    def server(self) -> dict[str, Any]:
        """Return the server's metadata."""
        return self._document("")

    def config(self) -> dict[str, Any]:
        """Return the model's configuration, or nothing."""
        try:
            return self._document(f"{self._path}/config")
        except RequestFailed:
            return {}

    def check_live(self) -> bool:
        """Whether the server is live."""
        return self._exchange("GET", "/health/live")[0] == _HTTP_OK

    def check_ready(self) -> bool:
        """Whether the model is ready."""
        return self._exchange("GET", f"{self._path}/ready")[0] == _HTTP_OK

    def close(self) -> None:
        """Give the connection up."""
        self._connection.close()

    def _infer(self, feed: Feed, request_id: str) -> Answer:
        head, tensors = self._request(feed, request_id)
        headers = {"Content-Type": "application/json"}
        if not self._as_json:
            headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
        return read_http_answer(*self._exchange("POST", f"{self._path}/infer", b"".join([head, *tensors]), headers))

    def _request(self, feed: Feed, request_id: str) -> tuple[bytes, list[bytes]]:
        inputs, tensors = [], []
        for name, value in feed.items():
            entry: dict[str, Any] = {"name": name, "shape": list(value.shape), "datatype": self._types[name]}
            if self._as_json:
                entry["data"] = value.reshape(-1).tolist()
            else:
                tensors.append(np.ascontiguousarray(value).tobytes())
                entry["parameters"] = {"binary_data_size": len(tensors[-1])}
            inputs.append(entry)
        document = {"id": request_id, "inputs": inputs, "parameters": {"binary_data_output": not self._as_json}}
        return json.dumps(document).encode(), tensors

    def _document(self, path: str) -> dict[str, Any]:
        status, body, _ = self._exchange("GET", path)
        if status != _HTTP_OK:
            raise RequestFailed(Failure.ERROR, f"HTTP {status}: {error_text(body)}")
        document = read_json_object(body)
        if "error" in document:
            raise RequestFailed(Failure.ERROR, f"HTTP {status}: {document['error']}")
        return document

    def _exchange(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, str | None]:
        """Status, body and the length of its JSON part."""
        deadline = time.monotonic() + self._timeout_s
        if time.monotonic() - self._used > _IDLE_S:
            self._connection.close()
        try:
            self._connection.request(
                method, f"{self._address.prefix}/v2{path}", body or None, {**(headers or {}), **self._address.headers}
            )
            response = self._connection.getresponse()
            content = self._read(response, deadline)
        except RequestFailed:
            self._connection.close()
            raise
        except http.client.IncompleteRead as error:
            self._connection.close()
            raise RequestFailed(
                Failure.UNREADABLE, f"it broke off after {len(error.partial)} bytes of a piece"
            ) from None
        except TimeoutError:
            self._connection.close()
            raise RequestFailed(Failure.NO_ANSWER, f"nothing came within {self._timeout_s:g} s") from None
        except OSError as error:
            self._connection.close()
            kind = Failure.UNREACHABLE if _is_unreachable(error) else Failure.NO_ANSWER
            raise RequestFailed(kind, error.strerror or str(error) or type(error).__name__) from None
        except (http.client.HTTPException, ValueError) as error:
            self._connection.close()
            raise RequestFailed(Failure.UNREADABLE, f"no HTTP: {type(error).__name__} {error}") from None
        self._used = time.monotonic()
        return response.status, content, response.headers.get(HEADER_LENGTH)

    def _read(self, response: http.client.HTTPResponse, deadline: float) -> bytes:
        """The whole body; a timeout of the socket alone would let a server send a byte now and then for ever."""
        pieces: list[bytes] = []
        while True:
            piece = response.read1(_PIECE)
            if not piece:
                break
            pieces.append(piece)
            if time.monotonic() > deadline:
                came = sum(map(len, pieces))
                raise RequestFailed(Failure.NO_ANSWER, f"only {came} bytes came within {self._timeout_s:g} s")
        # read1 leaves a body that was read to its announced end open, and the connection unusable.
        response.close()
        if response.length:
            came = sum(map(len, pieces))
            raise RequestFailed(
                Failure.UNREADABLE, f"it broke off after {came} of the {came + response.length} bytes it announced"
            )
        return b"".join(pieces)


class GrpcClient(Client):
    """gRPC, with tritonclient's channel and messages."""

    def __init__(
        self,
        module: ModuleType,
        address: Address,
        model: str,
        version: str,
        inputs: tuple[GraphPort, ...],
        timeout_s: float,
    ) -> None:
        super().__init__(address, model, version, inputs, timeout_s)
        self._module = module
        headers = {name.lower(): value for name, value in address.headers.items()}
        arguments: list[tuple[str, Any]] = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            # No channel may live on in gRPC's pool: a server that came back would be waited for.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if address.is_loopback:
            arguments.append(("grpc.enable_http_proxy", 0))
        if "host" in headers:
            arguments.append(("grpc.default_authority", headers.pop("host")))
        tls = address.tls
        self._headers = headers
        self._client: Any = module.InferenceServerClient(
            address.netloc,
            ssl=tls is not None,
            root_certificates=None if tls is None or tls.ca_file is None else str(tls.ca_file),
            private_key=None if tls is None or tls.key_file is None else str(tls.key_file),
            certificate_chain=None if tls is None or tls.cert_file is None else str(tls.cert_file),
            channel_args=arguments,
        )

    def metadata(self) -> dict[str, Any]:
        """Return the model's metadata."""
        return dict(self._call(self._client.get_model_metadata, self._model, self._version, as_json=True))

    def server(self) -> dict[str, Any]:
        """Return the server's metadata."""
        return dict(self._call(self._client.get_server_metadata, as_json=True))

    def config(self) -> dict[str, Any]:
        """Return the model's configuration, or nothing."""
        try:
            found = self._call(self._client.get_model_config, self._model, self._version, as_json=True)
        except RequestFailed:
            return {}
        return dict(found.get("config", {}))

    def check_live(self) -> bool:
        """Whether the server is live."""
        return bool(self._call(self._client.is_server_live))

    def check_ready(self) -> bool:
        """Whether the model is ready."""
        return bool(self._call(self._client.is_model_ready, self._model, self._version))

    def close(self) -> None:
        """Give the connection up."""
        self._client.close()

    def _infer(self, feed: Feed, request_id: str) -> Answer:
        inputs = []
        for name, value in feed.items():
            tensor = self._module.InferInput(name, list(value.shape), self._types[name])
            tensor.set_data_from_numpy(value)
            inputs.append(tensor)
        result = self._call(self._client.infer, self._model, inputs, model_version=self._version, request_id=request_id)
        return read_grpc_answer(result.get_response())

    def _call(self, function: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, headers=self._headers or None, client_timeout=self._timeout_s, **options)
        except self._module.InferenceServerException as error:
            status, words = str(error.status() or ""), str(error.message())
            if status.endswith("DEADLINE_EXCEEDED"):
                raise RequestFailed(Failure.NO_ANSWER, f"nothing came within {self._timeout_s:g} s") from None
            if status.endswith(("UNAVAILABLE", "CANCELLED")):
                unreachable = any(sign in words for sign in _GRPC_UNREACHABLE)
                raise RequestFailed(Failure.UNREACHABLE if unreachable else Failure.NO_ANSWER, words) from None
            raise RequestFailed(Failure.ERROR, f"{status.rpartition('.')[2]}: {words}".lstrip(": ")) from None


def _is_unreachable(error: OSError) -> bool:
    known = (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)
    return isinstance(error, known) or error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)


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
            f"tritonclient is missing ({error})", mend="pip install 'nm2trt[server]', or --protocol http"
        ) from None
    return GrpcClient(module, address, model, version, inputs, timeout_s)
