"""The KServe v2 protocol over HTTP and gRPC behind one small interface; tritonclient does the work."""

from __future__ import annotations

from types import ModuleType, TracebackType
from typing import Any, Protocol
from urllib.parse import urlsplit

from typing_extensions import Self

from nm2trt.artifacts import GraphPort
from nm2trt.artifacts.server_report import Protocol as ProtocolName
from nm2trt.errors import ConfigError, MachineError
from nm2trt.serve.ports import kserve_type
from nm2trt.serve.samples import Feed

_TIMEOUT_S = 20.0


class RequestFailed(Exception):  # noqa: N818 -- an answer of the server, not a mistake of ours
    """The server refused, broke off or did not answer in time; the message is its own."""


class Client(Protocol):
    """One connection.

    A protocol because HTTP and gRPC clients share no base class, and a load test must treat them alike.
    """

    def infer(self, feed: Feed) -> Feed:
        """Ask once.

        Raises:
            RequestFailed: No answer.
        """

    def metadata(self) -> dict[str, Any]:
        """Return the model's metadata."""

    def server(self) -> str:
        """Return the server's name and version."""

    def not_ready(self) -> str:
        """Return why server or model is not ready, or nothing."""

    def close(self) -> None:
        """Give the connection up."""


class _Base:
    """What both protocols do alike; tritonclient's two modules have the same names."""

    def __init__(
        self, module: ModuleType, address: str, model: str, version: str, inputs: tuple[GraphPort, ...]
    ) -> None:
        self._module = module
        self._model, self._version = model, version
        self._types = {port.name: kserve_type(port.dtype) for port in inputs}
        self._client: Any = self._open(address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def infer(self, feed: Feed) -> Feed:
        inputs = []
        for name, value in feed.items():
            tensor = self._module.InferInput(name, list(value.shape), self._types[name])
            tensor.set_data_from_numpy(value)
            inputs.append(tensor)
        result = self._call(self._client.infer, self._model, inputs, model_version=self._version, **self._limits())
        return {name: result.as_numpy(name) for name in self._names(result)}

    def metadata(self) -> dict[str, Any]:
        found = self._call(self._client.get_model_metadata, self._model, self._version, **self._plain())
        return dict(found)

    def server(self) -> str:
        found = self._call(self._client.get_server_metadata, **self._plain())
        return f"{found['name']} {found['version']}"

    def not_ready(self) -> str:
        try:
            if not self._call(self._client.is_server_live):
                return "the server is not live"
            if not self._call(self._client.is_model_ready, self._model, self._version):
                version = f" version {self._version}" if self._version else ""
                return f"model {self._model!r}{version} is not there or not ready"
        except RequestFailed as error:
            return f"no answer: {error}"
        return ""

    def close(self) -> None:
        self._client.close()

    def _open(self, address: str) -> Any:
        raise NotImplementedError

    def _limits(self) -> dict[str, Any]:
        return {}

    def _plain(self) -> dict[str, Any]:
        return {}

    def _names(self, result: Any) -> list[str]:
        raise NotImplementedError

    def _call(self, function: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except Exception as error:
            # Refused connections, resets and timeouts arrive as gevent's, the socket's and the protocol's own errors.
            raise RequestFailed(" ".join(str(error).split()) or type(error).__name__) from error


class HttpClient(_Base):
    """HTTP with binary tensors."""

    def _open(self, address: str) -> Any:
        return self._module.InferenceServerClient(address, network_timeout=_TIMEOUT_S, connection_timeout=_TIMEOUT_S)

    def _names(self, result: Any) -> list[str]:
        return [output["name"] for output in result.get_response()["outputs"]]


class GrpcClient(_Base):
    """gRPC."""

    def _open(self, address: str) -> Any:
        return self._module.InferenceServerClient(address)

    def _limits(self) -> dict[str, Any]:
        return {"client_timeout": _TIMEOUT_S}

    def _plain(self) -> dict[str, Any]:
        return {"as_json": True}

    def _names(self, result: Any) -> list[str]:
        return [output.name for output in result.get_response().outputs]


def open_client(
    protocol: ProtocolName, address: str, model: str, version: str, inputs: tuple[GraphPort, ...]
) -> HttpClient | GrpcClient:
    """Open a connection; nothing is sent yet.

    Raises:
        MachineError: tritonclient is missing.
    """
    try:
        if protocol == "http":
            import tritonclient.http as module
        else:
            import tritonclient.grpc as module
    except ImportError as error:
        raise MachineError(f"tritonclient is missing ({error})", mend="pip install 'nm2trt[server]'") from None
    kind = HttpClient if protocol == "http" else GrpcClient
    return kind(module, address, model, version, inputs)


def addresses(url: str, grpc: str | None) -> tuple[str, str]:
    """HTTP and gRPC addresses, HOST:PORT each; gRPC's port is the one after HTTP's unless it is named.

    Raises:
        ConfigError: The URL is none of http.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        host, port = parts.hostname, parts.port or 8000
    except ValueError as error:
        raise ConfigError(f"{url!r}: {error}", where="URL", mend="write http://HOST:PORT") from None
    if parts.scheme != "http" or not host or parts.path.strip("/"):
        raise ConfigError(f"{url!r} is no http://HOST:PORT", where="URL", mend="write http://127.0.0.1:8000")
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{port}", grpc or f"{host}:{port + 1}"
