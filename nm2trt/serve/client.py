"""The KServe v2 protocol over HTTP and gRPC behind one small interface, with answers that are read strictly."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any

from typing_extensions import Self

from nm2trt.artifacts import GraphPort
from nm2trt.serve.address import Address
from nm2trt.serve.answers import Answer, Failure, RequestFailed
from nm2trt.serve.ports import kserve_type
from nm2trt.serve.samples import Feed

TIMEOUT_S = 20.0


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
