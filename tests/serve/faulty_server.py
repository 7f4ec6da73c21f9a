"""A KServe v2 server on loopback, HTTP and gRPC, that is wrong in one way; imported as `from faulty_server import ...`.

It answers with ONNX Runtime's outputs of a graph, spoiled as its mode says. `RIGHT` modes are unusual and correct.
"""

import gzip
import itertools
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import onnxruntime

MODEL = "net"
LATE = 230
"""Requests that are right before a mode with "late" starts: more than the comparison of outputs sends."""
TYPES = {"int64": "INT64", "float32": "FP32", "float16": "FP16", "float64": "FP64", "int32": "INT32", "bool": "BOOL"}
ARRAYS = {kserve: np.dtype(name) for name, kserve in TYPES.items()}
RIGHT = (
    "ok", "json", "nested-json", "chunked", "connection-close", "no-id", "in-pieces", "reordered", "typed-as-text",
    "http-1.0",
)  # fmt: skip

WORDS = {
    "truncated": "the answer cannot be read: output 'a' of FP32",
    "empty-tensors": "the answer cannot be read: output 'a' of FP32",
    "too-long": "the answer cannot be read",
    "missing-output": "output b is missing",
    "extra-output": "output debug (float32 [1]) is not the reference's",
    "renamed-output": "output a is missing",
    "twice": "comes twice",
    "swapped-outputs": "outputs differ from ONNX Runtime's",
    "swapped-rows": "outputs differ from ONNX Runtime's",
    "wrong-dtype": "output a is float64",
    "wrong-shape": "output a is float32",
    "fewer-rows": "output a is float32",
    "nan": "NaN, infinite",
    "infinite": "NaN, infinite",
    "off-by-one": "output class_id: ",
    "batched-only": "batch 2",
    "only-batch-5": "batch 5",
    "rows-of-batch-3": "batch 3",
    "big-endian": "outputs differ from ONNX Runtime's",
    "some-tokens": "outputs differ from ONNX Runtime's",
    "stale": "outputs differ from ONNX Runtime's",
    "zeros": "outputs differ from ONNX Runtime's",
    "other-id": "the answer is not what was asked for: id",
    "other-model": "the answer is not what was asked for: model 'other'",
    "other-version": "the answer is not what was asked for: version '7', not '2'",
    "old-version": "the answer is not what was asked for: version '1', not '2'",
    "one-in-100-wrong": "outputs differ from ONNX Runtime's",
    "one-in-100-error": "the server answered with an error",
    "error": "the server answered with an error",
    "slow": "The server did not answer: nothing came within 0.5 s",
    "dropped": "The server did not answer",
    "input-renamed": "input 'ids' is not served",
    "input-retyped": "input 'ids' is INT32, not INT64",
    "output-reshaped": "output 'a' has shape [-1, 5], not [-1, 4]",
    "unnamed-inputs": "the description has no list of inputs with names",
    "unversioned-server": "the server's own description has no version",
}
"""Mode of both protocols -> what the error line says."""

HTTP_WORDS = {
    "empty-body": "the answer cannot be read: it is empty",
    "garbage": "the answer cannot be read: no JSON",
    "html": "the answer cannot be read: no JSON",
    "not-http": "the answer cannot be read: no HTTP",
    "json-list": "the answer cannot be read: a JSON list, not an object",
    "no-outputs": "the answer cannot be read: it has no list of outputs",
    "outputs-object": "the answer cannot be read: it has no list of outputs",
    "output-text": "the answer cannot be read: an output is str",
    "shape-text": "the answer cannot be read: output 'a' has shape",
    "negative-shape": "the answer cannot be read: output 'a' has shape",
    "unknown-type": "the answer cannot be read: output 'a' has type",
    "header-length": "the answer cannot be read: Inference-Header-Content-Length",
    "header-length-text": "the answer cannot be read: Inference-Header-Content-Length",
    "content-length-long": "the answer cannot be read: it broke off",
    "content-length-short": "the answer cannot be read",
    "chunk-broken": "the answer cannot be read: it broke off",
    "gzip": "the answer cannot be read: it is encoded with 'gzip'",
    "redirect": "the server answered with an error: HTTP 302",
    "no-content": "the server answered with an error: HTTP 204",
    "error-200": "the server answered with an error: HTTP 200: out of memory",
    "json-text": "the answer cannot be read: output 'a' of FP32 holds '",
    "json-short": "the answer cannot be read: output 'a' of FP32",
    "dripping": "The server did not answer: only",
    "no-description": "no description: the answer cannot be read: no JSON",
}

LOAD_WORDS = {
    "truncated-late": "the answer cannot be read",
    "wrong-late": "wrong answer, output a",
    "off-by-one-late": "wrong answer, output class_id",
    "error-late": "the server answered with an error",
    "stale-late": "wrong answer, output a",
    "dies-late": "The server did not answer",
}


class Spoiler:
    """The network's answers, and what a mode makes of them; shared by both protocols."""

    def __init__(self, onnx, mode):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
        self.late = mode.endswith("-late")
        self.mode = mode.removesuffix("-late")
        self.numbers = itertools.count(1)
        self.first = None
        # Triton describes one dimension besides the batch at least; `reshape` hides it from the network.
        ports = (*self.session.get_inputs(), *self.session.get_outputs())
        self.flat = {port.name for port in ports if len(port.shape) <= 1}

    def active(self, number):
        return not self.late or number > LATE

    def answer(self, feed):
        """Number of the request, and its outputs as (name, KServe type, array) in the graph's order."""
        number = next(self.numbers)
        if self.mode == "padded":
            feed = {name: value[..., 0] if name in self.flat else value for name, value in feed.items()}
        names = [port.name for port in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(None, feed), strict=True))
        if self.first is None:
            self.first = outputs
        if self.mode == "padded":
            outputs = {name: value[..., None] if name in self.flat else value for name, value in outputs.items()}
        elif self.active(number) and "a" in outputs:
            self.spoil(outputs, feed, number)
        return number, outputs

    def spoil(self, outputs, feed, number):
        a, rows, mode = outputs["a"], len(outputs["a"]), self.mode
        nudge = np.zeros_like(a)
        nudge.flat[-1] = 1
        if (
            mode == "wrong"
            or (mode == "one-in-100-wrong" and number % 100 == 0)
            or (mode == "batched-only" and rows > 1)
            or (mode == "only-batch-5" and rows == 5)
            or (mode == "some-tokens" and (feed["ids"] == 37).any())
        ):
            outputs["a"] = a + nudge
        elif mode in ("nan", "infinite"):
            outputs["a"] = np.where(nudge > 0, np.float32("nan" if mode == "nan" else "inf"), a)
        elif mode == "off-by-one":
            outputs["class_id"] = outputs["class_id"] + 1
        elif mode == "swapped-outputs":
            outputs["a"], outputs["b"] = outputs["b"], a
        elif mode == "swapped-rows" or (mode == "rows-of-batch-3" and rows == 3):
            outputs["a"] = a[::-1].copy()
        elif mode == "wrong-dtype":
            outputs["a"] = a.astype(np.float64)
        elif mode == "wrong-shape":
            outputs["a"] = a.reshape(-1)
        elif mode == "fewer-rows":
            outputs["a"] = a[:-1]
        elif mode == "missing-output":
            del outputs["b"]
        elif mode == "extra-output":
            outputs["debug"] = np.zeros(1, np.float32)
        elif mode == "renamed-output":
            outputs["A"] = outputs.pop("a")
        elif mode == "big-endian":
            outputs["a"] = a.byteswap()
        elif mode == "reordered":
            for name in sorted(outputs, reverse=True):
                outputs[name] = outputs.pop(name)
        elif mode == "fewer-columns" and feed["x"].shape[1] != feed["x"].shape[2]:
            outputs["a"] = a[:, : feed["x"].shape[2] // 2]
        elif mode == "zeros":
            outputs["a"] = np.zeros_like(a)
        elif mode == "stale" and self.first["a"].shape == a.shape:
            outputs["a"] = self.first["a"]

    def content(self, name, array, number):
        """Bytes of a tensor."""
        raw = np.ascontiguousarray(array).tobytes()
        if name != "a" or not self.active(number):
            return raw
        return {"truncated": raw[:-4], "empty-tensors": b"", "too-long": raw + raw[:4]}.get(self.mode, raw)

    def fails(self, number):
        return self.active(number) and (self.mode == "error" or (self.mode == "one-in-100-error" and number % 100 == 0))

    def head(self, request_id):
        """Model, version and id of an answer."""
        version = {"other-version": "7", "old-version": "1"}.get(self.mode, "2")
        given = {"other-id": "someone else's", "no-id": ""}.get(self.mode, request_id)
        return ("other" if self.mode == "other-model" else MODEL), version, given

    def ports(self):
        """Inputs and outputs as (name, type, shape)."""
        kinds = {"tensor(int64)": "INT64", "tensor(float)": "FP32", "tensor(bool)": "BOOL"}

        def described(ports):
            return [
                [one.name, kinds[one.type], [size if isinstance(size, int) else -1 for size in one.shape]]
                for one in ports
            ]

        inputs, outputs = described(self.session.get_inputs()), described(self.session.get_outputs())
        if self.mode == "padded":
            for one in (*inputs, *outputs):
                one[2] += [1] if one[0] in self.flat else []
        if self.mode == "input-renamed":
            inputs[0][0] = "tokens"
        if self.mode == "input-retyped":
            inputs[0][1] = "INT32"
        if self.mode == "output-reshaped":
            outputs[0][2] = [-1, 5]
        if self.mode == "unnamed-inputs":
            inputs[0][0] = ""
        return inputs, outputs


class Handler(BaseHTTPRequestHandler):
    """HTTP; most answers are one write."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    spoiler: Spoiler

    def log_message(self, *_arguments):
        """Say nothing."""

    def reply(self, code, body, headers=(), length=None):
        # Longer than announced, or shorter: only the end of the connection ends such an answer.
        self.close_connection = self.spoiler.mode == "connection-close" or length is not None
        lines = [f"HTTP/1.1 {code} X", f"Content-Length: {len(body) if length is None else length}", *headers]
        if self.spoiler.mode == "connection-close":
            lines.append("Connection: close")
        self.wfile.write("\r\n".join([*lines, "", ""]).encode() + body)

    def allowed(self):
        """Whether the path has the prefix and the headers the token; takes the prefix off."""
        self.server.seen.append(dict(self.headers.items()))
        if (
            not self.path.startswith(self.server.prefix + "/v2")
            or self.headers.get("Authorization") != self.server.token
        ):
            self.reply(401, b'{"error": "who are you?"}')
            return False
        self.path = self.path.removeprefix(self.server.prefix)
        return True

    def do_GET(self):
        mode = self.spoiler.mode
        if not self.allowed():
            return None
        if "/health/" in self.path or self.path.endswith("/ready"):
            return self.reply(200, b"")
        if mode in ("no-description", "html"):
            return self.reply(200, b"<html>log in</html>")
        if self.path == "/v2":
            server = {"name": "faulty", "version": "1", "extensions": ["binary_tensor_data"]}
            if mode == "unversioned-server":
                del server["version"]
            return self.reply(200, json.dumps(server).encode())
        if self.path.endswith("/config") and mode == "joins":
            return self.reply(200, b'{"name": "net", "max_batch_size": 8}')
        if self.path.endswith("/config"):
            return self.reply(404, b'{"error": "no configurations here"}')
        inputs, outputs = self.spoiler.ports()
        keys = ("name", "datatype", "shape")
        model = {
            "name": MODEL,
            "versions": ["1", "2"],
            "platform": "faulty",
            "inputs": [dict(zip(keys, one, strict=True)) for one in inputs],
            "outputs": [dict(zip(keys, one, strict=True)) for one in outputs],
        }
        return self.reply(200, json.dumps(model).encode())

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.allowed():
            return None
        length = self.headers.get("Inference-Header-Content-Length")
        end = int(length) if length else len(body)
        request, at, feed = json.loads(body[:end]), end, {}
        for one in request["inputs"]:
            kind, size = ARRAYS[one["datatype"]], one.get("parameters", {}).get("binary_data_size")
            flat = np.array(one["data"], kind) if size is None else np.frombuffer(body[at : at + size], kind)
            at += size or 0
            feed[one["name"]] = flat.reshape(one["shape"])
        number, outputs = self.spoiler.answer(feed)
        if self.spoiler.active(number) and self.misbehaved(number):
            return None
        if self.spoiler.fails(number):
            return self.reply(500, b'{"error": "out of memory"}')
        return self.send_answer(request, outputs, number)

    def misbehaved(self, number):
        """Modes that give no answer of the usual form."""
        mode = self.spoiler.mode
        if mode == "slow":
            time.sleep(1.5)
        elif mode == "dropped":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return True
        elif mode == "dies":
            self.server.die()
            return True
        elif mode == "not-http":
            self.close_connection = True
            self.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")
            return True
        elif mode == "dripping":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n")
            with np.errstate(all="ignore"):
                for _ in range(60):
                    time.sleep(0.1)
                    try:
                        self.wfile.write(b"x")
                    except OSError:
                        break
            return True
        bodies = {
            "empty-body": b"",
            "garbage": b"\x00\xff\xfe garbage",
            "html": b"<html>log in</html>",
            "json-list": b"[1, 2]",
            "no-outputs": json.dumps({"model_name": MODEL, "model_version": "2"}).encode(),
            "outputs-object": b'{"outputs": {"a": [1]}}',
            "output-text": b'{"outputs": ["a"]}',
            "error-200": b'{"error": "out of memory"}',
        }
        if mode in bodies:
            self.reply(200, bodies[mode])
        codes = {"redirect": (302, "Location: http://127.0.0.1:9/"), "no-content": (204, "X-Nothing: yes")}
        if mode in codes:
            self.reply(codes[mode][0], b"", [codes[mode][1]])
        return mode in bodies or mode in codes

    def send_answer(self, request, outputs, number):
        mode, entries, blob = self.spoiler.mode, [], b""
        as_json = mode.startswith(("json-", "nested-json")) or mode == "json"
        for name, array in outputs.items():
            entry = {"name": name, "datatype": TYPES[array.dtype.name], "shape": list(array.shape)}
            if as_json:
                entry["data"] = array.tolist() if mode == "nested-json" else array.reshape(-1).tolist()
                if name == "a" and mode == "json-text":
                    entry["data"] = [str(value) for value in entry["data"]]
                if name == "a" and mode == "json-short":
                    entry["data"].pop()
            else:
                content = self.spoiler.content(name, array, number)
                entry["parameters"] = {"binary_data_size": len(content)}
                blob += content
            if name == "a":
                spoiled = {"shape-text": ("shape", "4"), "negative-shape": ("shape", [1, -4]),
                           "unknown-type": ("datatype", "FP31")}.get(mode)  # fmt: skip
                if spoiled:
                    entry[spoiled[0]] = spoiled[1]
            entries.append(entry)
        if mode == "twice":
            entries.append({"name": "a", "datatype": "FP32", "shape": [0], "parameters": {"binary_data_size": 0}})
        model, version, given = self.spoiler.head(request.get("id", ""))
        document = {"model_name": model, "model_version": version, "outputs": entries}
        head = json.dumps({**document, **({"id": given} if given else {})}).encode()
        length = {"header-length": len(head) + len(blob) + 9, "header-length-text": "many"}.get(mode, len(head))
        headers = [] if as_json else [f"Inference-Header-Content-Length: {length}"]
        if mode in ("chunked", "chunk-broken"):
            return self.send_chunks(head + blob, headers)
        if mode == "in-pieces":
            self.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(head + blob)}\r\n{headers[0]}\r\n\r\n".encode())
            for byte in (head[:1], head[1:], blob[:3], blob[3:]):
                self.wfile.write(byte)
            return None
        if mode == "gzip":
            return self.reply(200, gzip.compress(head + blob), [*headers, "Content-Encoding: gzip"])
        if mode == "typed-as-text":
            headers.append("Content-Type: text/plain; charset=latin-1")
        if mode == "http-1.0":
            # Nothing but the end of the connection tells where the answer ends.
            self.close_connection = True
            self.wfile.write("\r\n".join(["HTTP/1.0 200 OK", *headers, "", ""]).encode() + head + blob)
            return None
        announced = len(head) + len(blob) + {"content-length-long": 4, "content-length-short": -4}.get(mode, 0)
        broken = announced != len(head) + len(blob)
        return self.reply(200, head + blob, headers, length=announced if broken else None)

    def send_chunks(self, body, headers):
        self.wfile.write("\r\n".join(["HTTP/1.1 200 OK", "Transfer-Encoding: chunked", *headers, "", ""]).encode())
        for at in range(0, len(body), 50):
            piece = body[at : at + 50]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if self.spoiler.mode == "chunk-broken":
            self.close_connection = True
            return self.wfile.write(b"40\r\nbroken off")
        return self.wfile.write(b"0\r\n\r\n")


class HttpServer(ThreadingHTTPServer):
    """Remembers its connections, so that it can die."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.connections, self.seen, self.prefix, self.token = [], [], "", None

    def process_request(self, request, client_address):
        self.connections.append(request)
        super().process_request(request, client_address)

    def handle_error(self, request, client_address):
        """Say nothing: clients that give up are the point."""

    def die(self):
        self.socket.close()
        for one in self.connections:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


@contextmanager
def http_server(onnx, mode, *, context=None, prefix="", token=None, seen=None):
    """Serve over HTTP, TLS with an ssl context, below a path prefix, for those who have a token; gives HOST:PORT."""
    handler = type("ModeHandler", (Handler,), {"spoiler": Spoiler(onnx, mode)})
    server = HttpServer(("127.0.0.1", 0), handler)
    server.prefix, server.token = prefix, token
    server.seen = server.seen if seen is None else seen
    port = server.server_port
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def grpc_server(onnx, mode, credentials=None):
    """Serve over gRPC; gives HOST:PORT, and the metadata of every request."""
    import grpc
    from tritonclient.grpc import service_pb2 as messages
    from tritonclient.grpc import service_pb2_grpc as services

    spoiler, seen = Spoiler(onnx, mode), []

    def port_messages(ports):
        made = []
        for name, kind, shape in ports:
            made.append(messages.ModelMetadataResponse.TensorMetadata(name=name, datatype=kind, shape=shape))
        return made

    class Servicer(services.GRPCInferenceServiceServicer):
        def ServerLive(self, _request, _context):  # noqa: N802 -- the protocol's names
            return messages.ServerLiveResponse(live=True)

        def ModelReady(self, _request, _context):  # noqa: N802
            return messages.ModelReadyResponse(ready=True)

        def ServerMetadata(self, _request, _context):  # noqa: N802
            version = "" if mode == "unversioned-server" else "1"
            return messages.ServerMetadataResponse(name="faulty", version=version)

        def ModelMetadata(self, _request, _context):  # noqa: N802
            inputs, outputs = map(port_messages, spoiler.ports())
            return messages.ModelMetadataResponse(name=MODEL, versions=["1", "2"], inputs=inputs, outputs=outputs)

        def ModelInfer(self, request, context):  # noqa: N802
            seen.append(dict(context.invocation_metadata()))
            feed = {}
            for one, raw in zip(request.inputs, request.raw_input_contents, strict=True):
                feed[one.name] = np.frombuffer(raw, ARRAYS[one.datatype]).reshape(list(one.shape))
            number, outputs = spoiler.answer(feed)
            if spoiler.fails(number):
                context.abort(grpc.StatusCode.INTERNAL, "out of memory")
            if mode == "dropped":
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            if mode == "slow":
                time.sleep(1.5)
            model, version, given = spoiler.head(request.id)
            answer = messages.ModelInferResponse(model_name=model, model_version=version, id=given)
            for name, array in outputs.items():
                kind = TYPES[array.dtype.name]
                answer.outputs.add(name=name, datatype=kind, shape=array.shape)
                if mode == "json":
                    contents = answer.outputs[-1].contents
                    getattr(contents, {"INT64": "int64_contents", "FP32": "fp32_contents"}[kind]).extend(
                        array.reshape(-1).tolist()
                    )
                else:
                    answer.raw_output_contents.append(spoiler.content(name, array, number))
            if mode == "twice":
                answer.outputs.add(name="a", datatype="FP32", shape=[0])
                answer.raw_output_contents.append(b"")
            return answer

    server = grpc.server(ThreadPoolExecutor(8))
    services.add_GRPCInferenceServiceServicer_to_server(Servicer(), server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}", seen
    finally:
        server.stop(None)
