"""The KServe v2 protocol over HTTP, with the standard library alone."""

from __future__ import annotations

import errno
import http.client
import json
import socket
import ssl
import time
from typing import Any
from urllib.parse import quote

import numpy as np

from nm2trt.artifacts import GraphPort
from nm2trt.serve.address import Address
from nm2trt.serve.answers import (
    HEADER_LENGTH,
    Answer,
    Failure,
    RequestFailed,
    error_text,
    read_http_answer,
    read_json_object,
)
from nm2trt.serve.client import Client
from nm2trt.serve.samples import Feed

_HTTP_OK = 200
_IDLE_S = 1.0
"""A connection that was not used for so long is opened anew: servers close idle ones at any moment."""
_PIECE = 1 << 20


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
            encoding = response.headers.get("Content-Encoding", "identity")
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
        if encoding.lower() != "identity" and content:
            # http.client asks for identity alone.
            raise RequestFailed(Failure.UNREADABLE, f"it is encoded with {encoding!r}, which was not asked for")
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


def _is_unreachable(error: OSError) -> bool:
    known = (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError)
    return isinstance(error, known) or error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
