"""Run by test_ray_train.py: `examples/ray_train.py` twice, where the second time a worker dies before its report.

python ray_driver.py FOLDER
"""

import json
import os
import sys
from pathlib import Path

import ray
import ray.train
import ray_train

FOLDER = Path(sys.argv[1])
WORKERS = 2


def die_once(config):
    """Train as the example does, but lose the second worker in the third epoch, once."""
    report, marker = ray.train.report, FOLDER / "died"

    def report_or_die(metrics, checkpoint=None):
        if metrics["epoch"] == 3 and ray.train.get_context().get_world_rank() == 1 and not marker.exists():
            marker.touch()
            os._exit(1)
        report(metrics, checkpoint=checkpoint)

    ray.train.report = report_or_die
    ray_train.train_worker(config)


def main():
    found = []
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    try:
        for epochs, worker in ((2, ray_train.train_worker), (3, die_once)):
            result = ray_train.run(FOLDER, epochs, WORKERS, worker)
            found.append({**result.metrics, "checkpoint": result.checkpoint.path})
    finally:
        ray.shutdown()
    # Ray writes to stdout itself.
    (FOLDER / "results.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
