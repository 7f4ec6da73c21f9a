"""What tools, terminals and collectors put before, into and around the lines of a log, as patterns."""

from __future__ import annotations

import html
import re

ESCAPES = re.compile(
    # CSI and OSC sequences, other escapes, and the bytes that progress bars and terminals leave.
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()*+][0-9A-Za-z]|\x1b[ -~]?"
    # The same made visible: ^[[0m of `cat -v` and `less`, the symbol for escape, #x1B.
    r"|(?:\^\[|\u241b|#x1B)\[[0-9;]*[A-Za-z]"
    r"|[\x00\x07\x08\ufeff\u200b]"
)
_BARE_COLOR_FIRST = re.compile(r"(?:\[(?:\d{1,3}(?:;\d{1,3})*)?m)+")
_BARE_COLOR_LAST = re.compile(r"(?:\[(?:\d{1,3}(?:;\d{1,3})*)?m)+$")
"""Color codes whose escape character was lost on the way."""
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|#\d{2,4});")
"""A log that was saved as a web page."""
_GITLAB_SECTION = re.compile(r"section_(?:start|end):\d+:[\w.-]+(?:\[[^\]]*\])?")

_STAMPED = r"\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] (?:\[TRT\] ?)?\[[VIWEFX]\](?: \[TRT\])?"
HEADER = re.compile(
    rf"(?:{_STAMPED} ?"
    # Python's logger of TensorRT, polygraphy, TensorRT 7.
    r"|\[(?:TRT|TensorRT)\] ?(?:\[[VIWEFX]\]|(?:VERBOSE|INFO|WARNING|ERROR|INTERNAL_ERROR):)? ?"
    r"|\[[VIWEFX]\](?: \[TRT\])?(?: |$)"
    # ONNX Runtime's provider, Torch-TensorRT.
    r"|\[[VIWEF]:onnxruntime:[^\]]{0,200}\] ?|\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +(?:VERBOSE|INFO|WARNING|ERROR)\] ?"
    r"|(?:DEBUG|INFO|WARNING|ERROR|GRAPH): ?\[Torch-TensorRT[^\]]{0,200}\] ?- ?"
    r")+"
)
STAMP = re.compile(_STAMPED)
ANCHOR = re.compile(
    rf"{_STAMPED}|(?<![^\s:|>])\[[VIWEFX]\] \[TRT\]|\[TRT\] \[[VIWEFX]\]|\[TensorRT\] (?:VERBOSE|INFO|WARNING|ERROR):"
    r"|&&&& (?=RUNNING|PASSED|FAILED|WAIVED|SKIPPED)|(?<![^\s])\[[VIWEFX]\] |\[[VIWEF]:onnxruntime:"
    r"|(?:DEBUG|INFO|WARNING|ERROR|GRAPH): ?\[Torch-TensorRT"
)
"""Where a message of TensorRT or trtexec begins, whatever stands before it."""
_TIME = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?: ?(?:Z|[+-]\d\d:?\d\d))?"
CRI = re.compile(rf"{_TIME} (?:stdout|stderr) (?P<part>[FP])(?::\w+)?(?: |$)")
PREFIXES = tuple(
    re.compile(pattern)
    for pattern in (
        rf"{_TIME} (?:stdout|stderr) [FP](?::\w+)?(?: |$)",  # containerd, CRI-O
        rf"{_TIME} - [\w.-]{{1,100}} - (?:DEBUG|INFO|WARNING|ERROR|CRITICAL) - ?",  # Python's logging
        rf"{_TIME} [\w.-]{{1,100}} [\w./@-]{{1,100}}\[\d+\]: ?",  # journald
        rf"{_TIME}(?:[ \t]|$)",  # docker --timestamps, GitHub Actions
        rf"\[{_TIME}\](?: |$)",  # Jenkins
        r"\[?\d\d:\d\d:\d\d(?:[.,]\d+)?\]?(?: |$)",
        r"[A-Za-z0-9][\w./-]{0,100}[ \t]*\| ?(?![|])",  # docker compose
        r"\[pod/[^\]]{1,200}\] ?",  # kubectl --prefix
        r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [ \d]\d \d\d:\d\d:\d\d [\w.-]+ [\w./@-]+(?:\[\d+\])?: ?",
        r"[\w.-]{1,100} [\w./@-]{1,100}\[\d+\]: ?",
        r"[^\t\n]{1,100}\t[^\t\n]{1,100}\t(?=\d{4}-\d\d-\d\dT)",  # gh run view --log
        r"- [\w.-]{1,100} - (?:DEBUG|INFO|WARNING|ERROR|CRITICAL) - ?",
        r"(?:DEBUG|INFO|WARNING|ERROR|CRITICAL):[\w.-]{1,100}:",
        r"\[?(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)\]?(?: *[-:|] ?| +)(?=[\[&({]|Layer\(|Name: )",
        r"[IWEFD]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [\w./-]+:\d+\] ",  # glog, as Triton writes it
        r"> ?",
    )
)
STARTS = re.compile(
    r"\(Sparsity\) |Layer\(\w|Name: .*, LayerType: |\{\"(?:Layers|log|message|msg|MESSAGE|textPayload)\""
    r"|##\[\w|::\w+::|Bindings:|\s{0,30}$"
)
"""Begins a line of its own, though without a header."""
TABLE_ROW = re.compile(
    r"(?=.{20,600}$)(?:\s{2,}(?=.*[A-Za-z])\S.*(?:\s+\d+\.\d+){3,4}|\s*Layer\s+Time \(ms\)\s.*Time %)\s*$"
)
"""A whole row of the right-justified table of layer times, whose rows are all as long as one another."""
JSON_OBJECT = re.compile(r'\{"\w+": ?"')


def plain_line(line: str) -> str:
    """A line without escape sequences, color codes, entities of a web page, and the marks of GitLab's sections."""
    if not line.isprintable() or "^[[" in line or "#x1B" in line or "\u241b" in line:
        line = ESCAPES.sub("", line)
    if "&" in line and _ENTITY.search(line) is not None:
        line = html.unescape(line)
    if line[:1] == "[" and (first := _BARE_COLOR_FIRST.match(line)) is not None:
        line = line[first.end() :]
    if line[-1:] == "m":
        line = _BARE_COLOR_LAST.sub("", line)
    if line.startswith("section_"):
        line = _GITLAB_SECTION.sub("", line)
    return line
