"""What every JSON document of nm2trt has in common: a schema name, the writing version, strict reading."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import Self

from nm2trt._version import __version__
from nm2trt.artifacts.code_trust import check_inside, code_names, record_written
from nm2trt.artifacts.files import write_atomic
from nm2trt.errors import InputError


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class Document(BaseModel):
    """Base of run.json, build.json, report.json and every `--json` output.

    Subclasses set `SCHEMA` ("nm2trt.run/1") and `FILE` ("run.json"). The number after the slash grows when a
    reader of the old form would misread the new one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, ser_json_inf_nan="constants")

    SCHEMA: ClassVar[str]
    FILE: ClassVar[str] = ""

    schema_name: str = Field(default="", alias="schema")
    nm2trt_version: str = __version__
    created_utc: str = Field(default_factory=_now)

    def model_post_init(self, _context: Any) -> None:
        """Fill the schema name in."""
        if not self.schema_name:
            object.__setattr__(self, "schema_name", self.SCHEMA)

    def to_json(self) -> str:
        """Serialize with the keys as documented, indented, with a newline at the end."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=2, allow_nan=True) + "\n"

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """JSON Schema (draft 2020-12) of the document's file."""
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **cls.model_json_schema(by_alias=True, mode="serialization"),
            "title": cls.SCHEMA,
        }

    def write(self, folder: Path) -> Path:
        """Write into `folder` under the document's own file name, atomically."""
        path = folder / self.FILE
        content = self.to_json()
        write_atomic(path, content)
        if code_names(self.named_code()):
            record_written(content)
        return path

    def named_code(self) -> dict[str, str | None]:
        """Field -> name of a network or data set, which may be `package.module:function`."""
        return {}

    def named_files(self) -> list[str]:
        """Files that it names, all inside its own folder."""
        return []

    @classmethod
    def read(cls, folder: Path, *, hint: str = "") -> Self:
        """Read the document of `folder`.

        Raises:
            InputError: The file is missing, is no JSON, is of another schema or lacks fields.
        """
        path = folder / cls.FILE
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"no {cls.FILE} here", where=folder, hint=hint) from None
        except NotADirectoryError:
            raise InputError("is a file, not a folder", where=folder, hint=hint) from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"no readable JSON: {error}", where=path, hint=hint) from None
        found = raw.get("schema") if isinstance(raw, dict) else None
        if found != cls.SCHEMA:
            raise InputError(
                f"schema {found!r} is not {cls.SCHEMA!r}", where=path, hint="write it again with this nm2trt"
            )
        try:
            document = cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{field}: {first['msg']}", where=path, hint="write it again with this nm2trt") from None
        check_inside(path, document.named_files())
        return document
