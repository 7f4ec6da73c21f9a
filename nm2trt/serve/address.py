"""Where a server is: addresses, TLS, and headers, for both protocols."""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from nm2trt.errors import ConfigError, InputError

_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n]*)")
_HTTP_PORT, _HTTPS_PORT = 8000, 443


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Certificates; all empty: the system's authorities, and no certificate of our own."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    insecure: bool = False
    """Take any certificate; HTTP only."""

    def context(self) -> ssl.SSLContext:
        """Make the context for HTTPS.

        Raises:
            InputError: A file cannot be read, or is none.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
            if self.insecure:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if self.cert_file is not None:
                context.load_cert_chain(self.cert_file, self.key_file)
        except (OSError, ssl.SSLError) as error:
            where = ", ".join(str(one) for one in (self.ca_file, self.cert_file, self.key_file) if one)
            raise InputError(f"no usable certificate: {error}", where=where, hint="give PEM files") from None
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One protocol's way to a server."""

    host: str
    port: int
    prefix: str = ""
    """Path before /v2, "/serving/net"; HTTP only."""
    tls: Tls | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def netloc(self) -> str:
        """HOST:PORT."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine, which no proxy can reach."""
        if self.host == "localhost" or self.host.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        """For people: the prefix, but no header, which may be a secret."""
        return self.netloc + self.prefix


def read_http_address(url: str, *, tls: Tls, headers: dict[str, str]) -> Address:
    """Read URL: http or https, HOST, optional port (8000; 443 for https) and path prefix.

    Raises:
        ConfigError: It is none of these.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    secure = parts.scheme == "https"
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{url!r}: {error}", where="URL", hint="write http://HOST:PORT") from None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment or parts.username:
        raise ConfigError(
            f"{url!r} is no http://HOST:PORT",
            where="URL",
            hint="write http://127.0.0.1:8000 or https://HOST/PREFIX; a user or token goes into --header",
        )
    prefix = parts.path.rstrip("/")
    if prefix.endswith("/v2") or "/v2/models" in prefix:
        raise ConfigError(f"{url!r} goes on after /v2", where="URL", hint="leave /v2 and what follows it out")
    if not secure and tls != Tls():
        raise ConfigError("certificates have no use over http", where="URL", hint="write https://, or drop the option")
    return Address(
        host=host,
        port=port or (_HTTPS_PORT if secure else _HTTP_PORT),
        prefix=prefix,
        tls=tls if secure else None,
        headers=headers,
    )


def read_grpc_address(text: str | None, http: Address, *, tls: Tls, headers: dict[str, str]) -> Address:
    """Read gRPC's HOST:PORT, `grpcs://` before it for TLS; without it, the port after HTTP's.

    Raises:
        ConfigError: It is no such address, or nobody can guess it.
    """
    if text is None:
        if http.tls is not None or http.prefix:
            raise ConfigError(
                "behind https or a path prefix gRPC's address cannot be guessed",
                where="--grpc",
                hint="give --grpc [grpcs://]HOST:PORT, or --protocol http",
            )
        return Address(host=http.host, port=http.port + 1, headers=headers)
    parts = urlsplit(text if "://" in text else f"grpc://{text}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}", where="--grpc", hint="write HOST:PORT") from None
    plain, secure = parts.scheme in ("grpc", "http"), parts.scheme in ("grpcs", "https")
    if not (plain or secure) or not host or port is None or parts.path.strip("/"):
        raise ConfigError(f"{text!r} is no HOST:PORT", where="--grpc", hint="write HOST:PORT or grpcs://HOST:PORT")
    if secure and tls.insecure:
        raise ConfigError(
            "gRPC takes no unknown certificate", where="--insecure", hint="give --ca-file, or --protocol http"
        )
    return Address(host=host, port=port, tls=tls if secure else None, headers=headers)


def read_headers(texts: Sequence[str]) -> dict[str, str]:
    """Read `NAME: VALUE` headers; `@FILE` names a file with one a line, so that a token is in no command line.

    Raises:
        ConfigError: One is no header.
        InputError: The file cannot be read.
    """
    found: dict[str, str] = {}
    for text in texts:
        lines = [text]
        if text.startswith("@"):
            try:
                lines = [line for line in Path(text[1:]).read_text(encoding="utf-8").splitlines() if line.strip()]
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"cannot be read: {error}", where=text[1:], hint="one NAME: VALUE a line") from None
        for line in lines:
            match = _HEADER.fullmatch(line.strip())
            if match is None:
                # Not the text itself: it may hold a token.
                raise ConfigError("no NAME: VALUE", where="--header", hint='such as "Authorization: Bearer TOKEN"')
            found[match[1]] = match[2]
    return found
