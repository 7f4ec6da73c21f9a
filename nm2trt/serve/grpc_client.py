"""The KServe v2 protocol over gRPC, with tritonclient's channel and messages."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from nm2trt.artifacts import GraphPort
from nm2trt.serve.address import Address
from nm2trt.serve.answers import Answer, Failure, RequestFailed, read_grpc_answer
from nm2trt.serve.client import Client
from nm2trt.serve.samples import Feed

_UNREACHABLE = ("failed to connect", "onnection refused", "resolution failed", "andshake")


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
                unreachable = any(sign in words for sign in _UNREACHABLE)
                raise RequestFailed(Failure.UNREACHABLE if unreachable else Failure.NO_ANSWER, words) from None
            raise RequestFailed(Failure.ERROR, f"{status.rpartition('.')[2]}: {words}".lstrip(": ")) from None
