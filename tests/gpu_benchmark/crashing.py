"""What a worker's process runs in tests: products that answer, crash, or raise, by their size."""

import os

from nm2trt.gpu_benchmark.gpu_schema import PointRecord
from nm2trt.gpu_benchmark.worker import Failure


def serve(connection, config, budget_s, l2_bytes):
    while True:
        task = connection.recv()
        if task is None:
            return
        point, ways = task
        searched = [way for way in ways if way.searched]
        if point.m == 64 and searched:
            connection.send(Failure(searched[0], "cusparselt-searched failed: illegal instruction"))
            return
        if point.m == 512 and ways:
            os._exit(1)
        if point.m == 2048:
            connection.send(Failure(None, "out of memory"))
            return
        connection.send(
            PointRecord(
                m=point.m,
                n=point.n,
                k=point.k,
                dtype=point.dtype,
                origin=f"{os.getpid()} {' '.join(way.words for way in ways)}",
                rounds=1,
                launches_per_round=1,
                dense_us=1.0,
                dense_kernel="",
                sparse=(),
            )
        )
