"""`python ARGUMENTS`, in a fork of the command server: what `forked_python` runs.

Scripts, `-m nm2trt` and `-m torch.distributed.run` are forked; anything else is real Python. The fork gets this
process's streams, folder, environment and signals, and this process ends as the fork ended. `helpers.forked_python`
prepares it.
"""

import array
import itertools
import json
import os
import signal
import socket
import sys

MODULES = ("nm2trt", "torch.distributed.run")
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def is_forked(arguments: list[str]) -> bool:
    """Whether the server has imported what these arguments start."""
    rest = [*itertools.dropwhile(lambda one: one in ("-u", "-P"), arguments)]
    if rest[:1] == ["-m"]:
        return rest[1] in MODULES
    return bool(rest) and rest[0].endswith(".py")


def main(arguments: list[str]) -> None:
    """Never returns: ends with the fork's exit code, or by its signal."""
    if not is_forked(arguments):
        python = os.environ["NM2TRT_TEST_PYTHON"]
        os.execv(python, [python, *arguments])
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect("\0" + os.environ["NM2TRT_TEST_SERVER"])
    for number in FORWARDED:
        signal.signal(number, lambda received, _: connection.send(bytes([received])))
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    connection.sendmsg([b"2"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [1, 2]))])
    folder = os.getcwd()  # noqa: PTH109 -- pathlib takes longer to import than all of this
    request = {"python": arguments, "cwd": folder, "environment": dict(os.environ)}
    connection.sendall(json.dumps(request).encode() + b"\n")
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    answer = b""
    while part := connection.recv(64):
        answer += part
    if not answer:
        sys.exit("the command server ended")
    code = int(answer)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
