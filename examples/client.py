"""Classify digits on a server that `nm2trt serve` started, and compare two networks on the same traffic.

    python examples/client.py http://127.0.0.1:8000 digits-resnet8
    python examples/client.py http://127.0.0.1:8000 digits-resnet8 --against digits-resnet8-dense --share 0.2

Needs `pip install 'nm2trt[server]'`. Speaks the KServe v2 protocol, so any server of it will do.
"""

import argparse
import random
import time

import numpy as np
import tritonclient.http as triton

from nm2trt.data import load_data


def classify(client: triton.InferenceServerClient, model: str, images_NCHW: np.ndarray) -> tuple[np.ndarray, float]:
    """Ask one model; returns classes [N] and milliseconds."""
    port = client.get_model_metadata(model)["inputs"][0]
    tensor = triton.InferInput(port["name"], list(images_NCHW.shape), port["datatype"])
    tensor.set_data_from_numpy(images_NCHW)
    started = time.perf_counter()
    answer = client.infer(model, [tensor])
    latency_ms = (time.perf_counter() - started) * 1000
    name = answer.get_response()["outputs"][0]["name"]
    return answer.as_numpy(name).argmax(axis=1), latency_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--against", help="a second model that gets a share of the requests")
    parser.add_argument("--share", type=float, default=0.5, help="of the requests for --against")
    parser.add_argument("--requests", type=int, default=200)
    options = parser.parse_args()

    test = load_data("digits").test
    images, classes = test.fetch(range(len(test)), 0)
    images_NCHW, labels = images.numpy(), classes.numpy()
    draw = random.Random(0)
    seen: dict[str, list[tuple[bool, float]]] = {}
    with triton.InferenceServerClient(options.url.removeprefix("http://")) as client:
        for at in range(options.requests):
            second = options.against is not None and draw.random() < options.share
            model = options.against if second else options.model
            at = at % len(labels)
            found, latency_ms = classify(client, model, images_NCHW[at : at + 1])
            seen.setdefault(model, []).append((bool(found[0] == labels[at]), latency_ms))
    for model, results in seen.items():
        right, latencies_ms = zip(*results, strict=True)
        print(
            f"{model}: {len(results)} requests, {100 * np.mean(right):.1f} % right, "
            f"median {np.median(latencies_ms):.2f} ms, p99 {np.percentile(latencies_ms, 99):.2f} ms"
        )


if __name__ == "__main__":
    main()
