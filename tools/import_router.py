"""A trained router as a recipe for the Feature Forecast node: `python -m tools.import_router FILE --blocks
double=19 single=38`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cache_core.recipes import to_json
from cache_core.schedule.mask_files import THRESHOLD, columns, read_scores, router_mask


def blocks_of(text: str) -> tuple[str, int]:
    kind, _, count = text.partition("=")
    if not kind.isidentifier() or not count.isdecimal() or not 1 <= int(count) <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a kind and a number of blocks, such as double=19.")
    return kind, int(count)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "file", type=Path, help="scores by step and module: .json, or .safetensors (never .pt)"
    )
    parser.add_argument(
        "--blocks",
        type=blocks_of,
        nargs="+",
        required=True,
        metavar="KIND=COUNT",
        help="the model's blocks in running order; attention and MLP of each take a column, a single "
        "block takes one",
    )
    parser.add_argument("--threshold", type=float, default=THRESHOLD, help="scores above it are computed")
    parser.add_argument("--paired", action="store_true", help="Learning-to-Cache: every second step is full")
    parser.add_argument(
        "--reverse",
        action="store_true",
        help="the first row is the last step, as in Learning-to-Cache's checkpoints",
    )
    args = parser.parse_args(arguments)
    try:
        mask = router_mask(
            read_scores(args.file), columns(**dict(args.blocks)), args.threshold, args.paired, args.reverse
        )
    except ValueError as error:
        sys.exit(str(error))
    about = f"Router of {mask.steps} steps: {mask.kinds}"[:2000]
    sys.stdout.write(
        to_json({"name": args.file.stem[:100], "about": about, "level": "module", "mask": mask.to_dict()})
        + "\n"
    )


if __name__ == "__main__":
    main()
