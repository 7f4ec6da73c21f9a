"""What tools, terminals and collectors put around the lines of a log, as functions from lines to lines."""

import base64
import bz2
import gzip
import html
import json
import lzma

STAMP = "2026-09-26T10:{minute:02}:{second:02}.{nano:09}Z"


def stamp(index):
    return STAMP.format(minute=index // 60 % 60, second=index % 60, nano=index * 7919 % 10**9)


def each(form):
    """A wrapper that puts something around every line; `form` takes index and line."""
    return lambda lines: [form(index, line) for index, line in enumerate(lines)]


def wrapped_at(width):
    """Break lines at a terminal's width."""

    def wrap(lines):
        return [line[at : at + width] for line in lines for at in range(0, max(len(line), 1), width)]

    return wrap


def cri(lines):
    """containerd: lines over a size come in pieces marked P."""
    found = []
    for index, line in enumerate(lines):
        parts = [line[at : at + 150] for at in range(0, len(line), 150)] or [""]
        found += [f"{stamp(index)} stderr P {part}" for part in parts[:-1]] + [f"{stamp(index)} stderr F {parts[-1]}"]
    return found


def progress(lines):
    """A progress bar that was drawn over and over before each third line."""
    return [
        "".join(f"\rBuilding {10 * step:3}% |{'#' * step:<10}|" for step in range(3)) + "\r" + line
        if not index % 3
        else line
        for index, line in enumerate(lines)
    ]


PREFIXES = {
    "docker --timestamps": each(lambda i, line: f"{stamp(i)} {line}"),
    "docker compose": each(lambda i, line: f"trt_1  | {line}"),
    "docker compose 2": each(lambda i, line: f"trt-build-1  | {line}"),
    "github": each(lambda i, line: f"{stamp(i)[:27]}Z {line}"),
    "gh run view": each(lambda i, line: f"build\tRun trtexec\t{stamp(i)[:27]}Z {line}"),
    "jenkins": each(lambda i, line: f"[{stamp(i)[:23]}Z] {line}"),
    "kubectl --prefix": each(lambda i, line: f"[pod/trt-7d9f-x2x9z/build] {line}"),
    "stern": each(lambda i, line: f"trt-7d9f-x2x9z build {line}"),
    "syslog": each(lambda i, line: f"Sep 26 10:{i // 60 % 60:02}:{i % 60:02} orin trtexec[4711]: {line}"),
    "journald": each(lambda i, line: f"{stamp(i)[:19]}+0200 orin trtexec[4711]: {line}"),
    "python": each(lambda i, line: f"{stamp(i)[:10]} {stamp(i)[11:19]},{i % 1000:03} - builder - INFO - {line}"),
    "basicConfig": each(lambda i, line: f"INFO:builder:{line}"),
    "quoted": each(lambda i, line: f"> {line}"),
    "cri": cri,
}
JSON_LINES = {
    "docker json-file": each(lambda i, line: json.dumps({"log": f"{line}\n", "stream": "stdout", "time": stamp(i)})),
    "fluentd": each(lambda i, line: f"2026-09-26 10:00:00 +0000 trt.build: {json.dumps({'log': line})}"),
    "journald json": each(lambda i, line: json.dumps({"MESSAGE": line, "_PID": "4711"})),
    "cloud": each(lambda i, line: json.dumps({"insertId": base64.b32encode(b"%d" % i).decode(), "textPayload": line})),
}
TERMINAL = {
    "colors": each(lambda i, line: f"\x1b[38;5;{i % 15}m{line}\x1b[0m"),
    "title": each(lambda i, line: f"\x1b]0;trtexec {i}\x07{line}\x1b[K"),
    "caret colors": each(lambda i, line: f"^[[32m{line}^[[0m"),
    "bare colors": each(lambda i, line: f"[32m{line}[0m"),
    "carriage returns": each(lambda i, line: f"{line}\r"),
    "progress bar": progress,
    "80 columns": wrapped_at(80),
    "100 columns": wrapped_at(100),
    "137 columns": wrapped_at(137),
}
WRAPPERS = {**PREFIXES, **JSON_LINES, **TERMINAL}

PLATFORMS = {
    "buildkit": each(lambda i, line: f"#12 {1 + i * 0.37:.3f} {line}"),
    "colored compose": each(lambda i, line: f"\x1b[33mtrt_1  |\x1b[0m {line}\r"),
    "compose in github": each(lambda i, line: f"{stamp(i)[:27]}Z trt-1  | {line}"),
    "buildkit in github": each(lambda i, line: f"{stamp(i)[:27]}Z #9 {1 + i * 0.2:.1f} {line}"),
    "json in containerd": each(lambda i, line: f"{stamp(i)} stdout F {json.dumps({'level': 'INFO', 'msg': line})}"),
    "tracing": each(lambda i, line: json.dumps({"timestamp": stamp(i), "fields": {"message": line}, "target": "trt"})),
    "cloudwatch": each(lambda i, line: f"{stamp(i)[:19]}.000000+00:00 trt/build/0a1b2c3d {line}"),
    "gitlab": each(lambda i, line: f"{stamp(i)[:26]}Z 00O {line}"),
    "buildkite": each(lambda i, line: f"\x1b_bk;t={1690000000000 + i}\x07{line}"),
    "ts": each(lambda i, line: f"Sep 26 10:{i // 60 % 60:02}:{i % 60:02} {line}"),
    "srun": each(lambda i, line: f"0: {line}"),
    "mpirun": each(lambda i, line: f"[1,0]<stdout>:{line}"),
    "torchrun": each(lambda i, line: f"[rank0]: {line}"),
    "ray": each(lambda i, line: f"\x1b[36m(build pid=4711, ip=10.0.0.3)\x1b[0m {line}"),
    "loguru": each(lambda i, line: f"{stamp(i)[:10]} {stamp(i)[11:23]} | INFO     | builder:run:42 - {line}"),
    "rich": each(lambda i, line: f"[10:{i // 60 % 60:02}:{i % 60:02}] INFO     {line}"),
    "absl": each(lambda i, line: f"I0926 10:{i // 60 % 60:02}:{i % 60:02}.000000 140735 build.py:33] {line}"),
    "grep": each(lambda i, line: f"logs/build.log:{i + 1}:{line}"),
    "numbered": each(lambda i, line: f"{i + 1:6}\t{line}"),
    "indented": each(lambda _, line: f"\t{line}"),
}
"""Prefixes of build services, launchers and loggers, most of them of no form that the readers know beforehand."""
PAGES = {
    "markdown": lambda lines: ["# My run", "", "```bash", *lines, "```", "", "Thanks!"],
    "web page": each(lambda _, line: html.escape(line, quote=False)),
    "script": lambda lines: [
        'Script started on 2026-09-26 10:00:00+00:00 [COLUMNS="120"]',
        *(f"{line}\r" for line in lines),
        "Script done",
    ],
    "padded": each(lambda _, line: line.ljust(190)),
    "152 columns": wrapped_at(152),
    "237 columns": wrapped_at(237),
}
ALL = {**WRAPPERS, **PLATFORMS, **PAGES}

ENCODINGS = {
    "utf-8": lambda text: text.encode(),
    "utf-8 with mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "utf-16 little": lambda text: b"\xff\xfe" + text.encode("utf-16-le"),
    "utf-16 big": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "utf-16 little without mark": lambda text: text.encode("utf-16-le"),
    "utf-16 big without mark": lambda text: text.encode("utf-16-be"),
}
PACKINGS = {"plain": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}


def wrap(text, *names):
    """Put wrappers around a text, the first innermost."""
    lines = text.split("\n")
    for name in names:
        lines = [piece for line in ALL[name](lines) for piece in line.split("\n")]
    return "\n".join(lines)
