"""check-server behind an ingress: TLS, headers, a path prefix, both protocols; certificates are made by openssl."""

import shutil
import ssl
import subprocess

import pytest
from faulty_server import MODEL, grpc_server, http_server
from helpers import assert_one_error_line, nm2trt_inline
from serve_builds import needs_client, token_network, write_build

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="missing: openssl, the command")


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return write_build(tmp_path_factory.mktemp("tokens") / "build", token_network())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder / "cert.pem", folder / "key.pem"


def check(build, url, *options):
    return nm2trt_inline("check-server", url, MODEL, "--build", build, "--no-load", *options)


def test_a_prefix_and_a_token(build, tmp_path):
    (tmp_path / "token").write_text("Authorization: Bearer secret\n")
    seen = []
    with http_server(build / "model.onnx", "ok", prefix="/serving/net", token="Bearer secret", seen=seen) as address:
        url = f"http://{address}/serving/net/"
        asked = ("--protocol", "http", "--header", "Host: net.models.example")
        result = check(build, url, *asked, "--header", f"@{tmp_path / 'token'}", "-o", tmp_path / "report")
        assert result.returncode == 0, result.stderr
        assert {one["Host"] for one in seen} == {"net.models.example"}
        for file in (tmp_path / "report").iterdir():
            assert "secret" not in file.read_text()
        assert check(build, url, *asked).returncode == 3
        assert check(build, f"http://{address}", "--protocol", "http").returncode == 3


@needs_client
def test_headers_are_grpcs_metadata(build):
    with grpc_server(build / "model.onnx", "ok") as (address, seen):
        result = check(
            build, "http://127.0.0.1:9", "--protocol", "grpc", "--grpc", address, "--header", "X-Team: vision",
            "--header", "Host: net.models.example",
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert {one.get("x-team") for one in seen} == {"vision"}


@needs_openssl
def test_https(build, certificate):
    cert, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    with http_server(build / "model.onnx", "ok", context=context) as address:
        asked = (build, f"https://{address}", "--protocol", "http")
        assert check(*asked, "--ca-file", cert).returncode == 0
        assert check(*asked, "--insecure").returncode == 0
        assert_one_error_line(check(*asked), 3, "The server did not answer", "certificate verify failed")
        assert_one_error_line(check(*asked, "--ca-file", key), 3, "no usable certificate")
    with http_server(build / "model.onnx", "truncated", context=context) as address:
        result = check(build, f"https://{address}", "--protocol", "http", "--ca-file", cert)
        assert result.returncode == 1
        assert "the answer cannot be read" in result.stderr


@needs_openssl
def test_https_asks_for_our_certificate(build, certificate):
    cert, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.load_verify_locations(cert)
    context.verify_mode = ssl.CERT_REQUIRED
    with http_server(build / "model.onnx", "ok", context=context) as address:
        asked = (build, f"https://{address}", "--protocol", "http", "--ca-file", cert)
        assert check(*asked, "--client-cert", cert, "--client-key", key).returncode == 0
        assert check(*asked).returncode in (1, 3)


@needs_client
@needs_openssl
def test_grpc_over_tls(build, certificate):
    import grpc

    cert, key = certificate
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    with grpc_server(build / "model.onnx", "ok", credentials) as (address, _):
        asked = (build, "https://127.0.0.1:9", "--protocol", "grpc", "--grpc", f"grpcs://{address}")
        result = check(*asked, "--ca-file", cert)
        assert result.returncode == 0, result.stderr
        assert_one_error_line(check(*asked), 3, "The server did not answer")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--duration", "3"), "--duration with --no-load"),
        (("--max-concurrency", "3", "--protocol", "http", "--grpc", "a:1"), "--grpc with --protocol http"),
        (("--samples", "x.npz", "--shape", "ids=1x6"), "--shape with --samples"),
        (("--protocol", "grpc", "--encoding", "json"), "--encoding with --protocol grpc"),
        (("--client-key", "x"), "--client-key without --client-cert"),
        (("--force",), "--force without -o"),
        (("--tolerance", "inf"), "--tolerance: inf is no bound"),
        (("--timeout", "nan"), "--timeout: nan is no bound"),
        (("--shape", "nosuch=1x2"), "no input 'nosuch'"),
        (("--shape", "ids=1x6"), "has no effect"),
        (("--ca-file", "x"), "no use over http"),
        (("--header", "secret"), "no NAME: VALUE"),
        (("--data-dir", "data"), "--data-dir: no effect: the build names no data set"),
    ],
)
def test_an_option_without_effect_is_refused(build, options, words):
    assert_one_error_line(check(build, "http://127.0.0.1:9", *options), 2, words)
