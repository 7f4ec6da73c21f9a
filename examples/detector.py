"""A 2:4 detector: torchvision's ResNet with a feature pyramid and a head that all levels share, on drawn rectangles.

    python examples/detector.py -o runs/detector [--steps 300] [--method dense]

Trains from random weights by SR-STE, scores the network against its untrained self, writes a checkpoint, exports it to
ONNX with its six outputs, and checks that every weight that was meant to be 2:4 is so in the ONNX file. Nothing is
downloaded. The same export by the command line:

    PYTHONPATH=examples nm2trt export runs/detector/checkpoint.safetensors --model detector:build_detector \
        --input-shape 3,64,64 --samples runs/detector/images.npz -o runs/detector/build --force

What stays dense: the stem, since it reads 3 channels and M is 4, and the two convolutions that make the outputs, which
are what a classifier is elsewhere: few weights, and each of their errors is one of the result.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops import batched_nms, box_iou, generalized_box_iou_loss, sigmoid_focal_loss

import nm2trt
from nm2trt.training import LayerReport

SIDE = 64
STRIDES = (8, 16, 32)
SHORTER_SIDES = (18.0, 34.0)
"""From which shorter side on, in pixels, a box belongs to the second and to the third level: it holds a place there."""
COLORS = torch.tensor([[0.9, 0.2, 0.2], [0.2, 0.8, 0.2], [0.3, 0.3, 0.9]])
OUTPUT_LAYERS = ("classes", "distances")

Truth = tuple[torch.Tensor, torch.Tensor]
"""Boxes [N, 4] as x1, y1, x2, y2 in pixels, and classes [N]."""


class Detector(nn.Module):
    """Class scores and the distances to a box's four sides, in pixels, at every place of three levels."""

    def __init__(self, classes: int = len(COLORS), width: int = 64) -> None:
        super().__init__()
        levels = {f"layer{level}": str(level) for level in (2, 3, 4)}
        self.backbone = BackboneWithFPN(ResNet(BasicBlock, [1, 1, 1, 1]), levels, [128, 256, 512], width)
        self.tower = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(8, width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(8, width), nn.ReLU(),
        )  # fmt: skip
        self.classes = nn.Conv2d(width, classes, 3, padding=1)
        self.distances = nn.Conv2d(width, 4, 3, padding=1)
        nn.init.constant_(self.classes.bias, -4.0)  # Almost every place is background.

    def forward(self, x_BCHW: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return logits [B, classes, H, W] and distances [B, 4, H, W] of each level."""
        features = self.backbone(x_BCHW)
        found = {}
        for level, stride in zip("234", STRIDES, strict=True):
            shared = self.tower(features[level])
            found[f"classes_{stride}"] = self.classes(shared)
            found[f"distances_{stride}"] = F.softplus(self.distances(shared)) * (2 * stride)
        return found


def build_detector() -> Detector:
    """What `nm2trt export --model detector:build_detector` calls."""
    return Detector()


def draw_scene(generator: torch.Generator) -> tuple[torch.Tensor, Truth]:
    """One to four rectangles of three colors on a noisy gray ground, later ones in front."""
    image = 0.5 + 0.15 * torch.randn(3, SIDE, SIDE, generator=generator)
    boxes: list[list[int]] = []
    colors: list[int] = []
    for _ in range(int(torch.randint(1, 5, (), generator=generator))):
        width, height = (int(size) for size in torch.randint(10, 45, (2,), generator=generator))
        left, top = (int(torch.randint(0, SIDE - size + 1, (), generator=generator)) for size in (width, height))
        box = torch.tensor([[left, top, left + width, top + height]])
        if boxes and box_iou(box, torch.tensor(boxes)).max() > 0.1:
            continue
        color = int(torch.randint(len(COLORS), (), generator=generator))
        shade = COLORS[color] * (0.6 + 0.4 * torch.rand((), generator=generator))
        image[:, top : top + height, left : left + width] = shade[:, None, None] + 0.1 * torch.randn(
            3, height, width, generator=generator
        )
        boxes.append(box[0].tolist())
        colors.append(color)
    return image - 0.5, (torch.tensor(boxes, dtype=torch.float32), torch.tensor(colors))


def draw_scenes(count: int, seed: int) -> tuple[torch.Tensor, list[Truth]]:
    """Images [count, 3, SIDE, SIDE] and what is on them."""
    generator = torch.Generator().manual_seed(seed)
    images, truths = zip(*(draw_scene(generator) for _ in range(count)), strict=True)
    return torch.stack(images), list(truths)


def all_places() -> torch.Tensor:
    """Centers of all places of all levels and their stride [places, 3], in the order of `flat`."""
    rows = []
    for stride in STRIDES:
        centers = (torch.arange(SIDE // stride) + 0.5) * stride
        y, x = torch.meshgrid(centers, centers, indexing="ij")
        rows.append(torch.stack([x.flatten(), y.flatten(), torch.full((x.numel(),), float(stride))], 1))
    return torch.cat(rows)


def flat(outputs: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    """One kind of output at all places of all levels [B, places, channels]."""
    return torch.cat([outputs[f"{kind}_{stride}"].flatten(2) for stride in STRIDES], 2).transpose(1, 2)


def boxes_at(places: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
    """Boxes [..., 4] from distances to the left, upper, right and lower side."""
    centers = places[..., :2]
    return torch.cat([centers - distances[..., :2], centers + distances[..., 2:]], -1)


def assign(places: torch.Tensor, truth: Truth) -> torch.Tensor:
    """Index of the box that each place has to find, -1 for none: near its middle, inside, at the level of its size."""
    boxes, _ = truth
    x_P1, y_P1, stride_P1 = (column[:, None] for column in places.unbind(1))
    sides = torch.stack([x_P1 - boxes[:, 0], y_P1 - boxes[:, 1], boxes[:, 2] - x_P1, boxes[:, 3] - y_P1])
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    near = torch.maximum((x_P1 - middle[:, 0]).abs(), (y_P1 - middle[:, 1]).abs()) < 1.5 * stride_P1
    shorter = (boxes[:, 2:] - boxes[:, :2]).amin(1)
    level = torch.bucketize(shorter, torch.tensor(SHORTER_SIDES), right=True)
    found = near & (sides.amin(0) > 0) & (stride_P1 == torch.tensor(STRIDES)[level])
    areas = torch.where(found, (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), torch.inf)
    smallest, index = areas.min(1)
    return torch.where(smallest.isinf(), -1, index)


def detection_loss(outputs: dict[str, torch.Tensor], places: torch.Tensor, truths: list[Truth]) -> torch.Tensor:
    """Focal loss of the classes at all places and GIoU loss of the boxes where there is one, both per such place."""
    logits, distances = flat(outputs, "classes"), flat(outputs, "distances")
    assigned = torch.stack([assign(places, truth) for truth in truths])
    positive = assigned >= 0
    wanted = torch.zeros_like(logits)
    boxes = []
    for at, (of_image, (truth_boxes, truth_classes)) in enumerate(zip(assigned, truths, strict=True)):
        chosen = of_image[positive[at]]
        wanted[at, positive[at], truth_classes[chosen]] = 1.0
        boxes.append(truth_boxes[chosen])
    found = boxes_at(places.expand(len(truths), -1, -1)[positive], distances[positive])
    total = sigmoid_focal_loss(logits, wanted, reduction="sum")
    total = total + generalized_box_iou_loss(found, torch.cat(boxes), reduction="sum")
    return total / positive.sum().clamp(min=1)


def detections(outputs: dict[str, torch.Tensor], places: torch.Tensor) -> list[Truth]:
    """Boxes and classes of each image: scores above 0.3, without those that overlap a better one of their class."""
    scores, classes = flat(outputs, "classes").sigmoid().max(2)
    boxes = boxes_at(places, flat(outputs, "distances"))
    results = []
    for at in range(len(scores)):
        sure = scores[at] > 0.3
        kept = batched_nms(boxes[at][sure], scores[at][sure], classes[at][sure], 0.5)
        results.append((boxes[at][sure][kept], classes[at][sure][kept]))
    return results


@torch.no_grad()
def score(model: Detector, images: torch.Tensor, truths: list[Truth]) -> str:
    """Recall and precision at IoU 0.5 with the right class, and the mean IoU of the best box of each rectangle."""
    model.eval()
    overlaps: list[float] = []
    hits = found = 0
    for start in range(0, len(images), 50):
        part = detections(model(images[start : start + 50]), all_places())
        for (boxes, classes), (true_boxes, true_classes) in zip(part, truths[start : start + 50], strict=True):
            iou = box_iou(true_boxes, boxes) * (true_classes[:, None] == classes[None, :])
            overlaps += iou.amax(1).tolist() if len(boxes) else [0.0] * len(true_boxes)
            hits += int((iou.amax(0) > 0.5).sum()) if len(boxes) else 0
            found += len(boxes)
    recall = sum(one > 0.5 for one in overlaps) / len(overlaps)
    return f"recall {recall:.3f}, precision {hits / max(found, 1):.3f}, mean IoU {np.mean(overlaps):.3f}"


def train(model: Detector, steps: int, method: Any, batch_size: int = 16) -> nm2trt.Sparsifier:
    """Train on scenes that are drawn as they are needed, with half a cosine of the learning rate."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 * (1 + np.cos(np.pi * step / steps)))
    )
    sparsifier = nm2trt.sparsify(model, optimizer, "2:4", method, exclude=OUTPUT_LAYERS, total_steps=steps)
    places = all_places()
    model.train()
    for step in range(steps):
        images, truths = draw_scenes(batch_size, seed=1000 + step)
        optimizer.zero_grad()
        loss = detection_loss(model(images), places, truths)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 6) == 0 or step == steps - 1:
            print(f"step {step + 1:4}: loss {float(loss.detach()):.3f}")
    return sparsifier


def print_layers(layers: list[LayerReport]) -> None:
    """Say what is sparse, and of each weight that is not, why."""
    sparse = [layer for layer in layers if layer.pattern is not None]
    print(f"{len(sparse)} of {len(layers)} weights are meant to be sparse")
    for layer in layers:
        if layer.pattern is None:
            print(f"dense: {layer.name} {list(layer.shape)}: {layer.reason}")


def export(folder: Path, images: torch.Tensor, names: list[str]) -> None:
    """Export the checkpoint, hold the ONNX against the network on drawn scenes, and count its 2:4 groups again."""
    source = {"model": "detector:build_detector", "input_shape": f"3,{SIDE},{SIDE}", "samples": folder / "images.npz"}
    np.savez(folder / "images.npz", input=images.numpy())
    config = nm2trt.ExportConfig.model_validate({"precision": "fp16", "builder": "none", "source": source})
    build = nm2trt.export_network(folder / "checkpoint.safetensors", folder / "build", config, force=True)
    assert build.verdict == "pass", build.numerics
    print(f"ONNX: {', '.join(port.name for port in build.outputs)}")
    print(f"largest difference from torch: {build.numerics.max_rel_error:.1e} of the largest output")

    checked = nm2trt.verify_file(folder / "build" / "model.onnx")
    legal = {layer.name for layer in checked.layers if layer.verdict == "conforms"}
    assert checked.verdict == "pass", checked.problems
    assert legal >= set(names), sorted(set(names) - legal)
    print(f"legal: all {len(names)} targeted weights are 2:4 in the ONNX file")
    print(f"eligible for sparse kernels in TensorRT: {build.facts.eligible.evidence}")
    print("chosen, and faster: not known before an engine is built and timed on a GPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--test-scenes", type=int, default=200)
    parser.add_argument("--method", default="sr-ste", help="Of sparsify; dense is scored only.")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    torch.manual_seed(0)
    model = Detector()
    images, truths = draw_scenes(arguments.test_scenes, seed=0)
    print(f"untrained: {score(model, images, truths)}")
    sparsifier = train(model, arguments.steps, arguments.method)
    print(f"trained by {arguments.method}: {score(model, images, truths)}")
    if arguments.method == "dense":
        return
    print_layers(sparsifier.report())

    patterns = {name: str(pattern) for name, pattern in sparsifier.patterns().items()}
    metadata = {"nm2trt.patterns": json.dumps(patterns), "nm2trt.method": arguments.method}
    save_file(model.state_dict(), arguments.output / "checkpoint.safetensors", metadata=metadata)
    export(arguments.output, images[:16], list(patterns))


if __name__ == "__main__":
    main()
