"""The paper's comparison, small: dense, STE, SR-STE and ASP at several patterns, with the decay swept at 2:4.

    python benchmarks/paper.py [--data fashion-mnist] [--epochs 3] [--seeds 5] [--minutes 120] [--write docs/results.md]

Every run is a folder below build/paper/DATA-MODEL-EPOCHS, so the grid goes on where it was stopped: what has a run.json
is read, what has a state is resumed; --minutes 0 only reads. All methods have the same epochs, schedule, seeds and data
order. Prints Markdown; --write puts it into a file, and its pictures beside it in images/.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from paper_grid import Grid
from paper_page import draw_flips_over_steps, draw_gap_and_sweep, markdown

from nm2trt.artifacts.files import write_atomic

PICTURES = ("paper-accuracy.png", "paper-sad.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--model", default="resnet8")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--folder", type=Path, default=Path("build/paper"))
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    grid = Grid(arguments.data, arguments.model, arguments.epochs, arguments.seeds, arguments.folder)
    if arguments.minutes > 0:
        grid.train(arguments.minutes)
    options = f"--data {grid.data} --model {grid.model} --epochs {grid.epochs} --seeds {grid.seeds}"
    command = f"python benchmarks/paper.py {options}"
    if arguments.write:
        images = arguments.write.parent / "images"
        draw_gap_and_sweep(grid, images / PICTURES[0])
        draw_flips_over_steps(grid, images / PICTURES[1])
        command += f" --write {arguments.write}"
    text = "\n".join(markdown(grid, command, PICTURES if arguments.write else None)) + "\n"
    if arguments.write:
        write_atomic(arguments.write, text)
    print(text)


if __name__ == "__main__":
    main()
