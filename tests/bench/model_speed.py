"""How fast a network's own features come: beside timm with a DataLoader, and with all layers beside the last alone.

    python tests/bench/model_speed.py --photos PHOTOS --backbone vit_base_patch16_clip_224.openai
    python tests/bench/model_speed.py --photos PHOTOS --backbone vit_small_patch14_dinov2.lvd142m --long 200

Rates leave start-up out: a long run less a short one, for both. Weights are random, which takes as long.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from extraction_speed import FEATSTORE, link_photos

SCRIPT = """
import sys, time
import timm, torch
from PIL import Image
from pathlib import Path

class Photos(torch.utils.data.Dataset):
    def __init__(self, folder, transform):
        self.files, self.transform = sorted(Path(folder).iterdir()), transform
    def __len__(self):
        return len(self.files)
    def __getitem__(self, i):
        return self.transform(Image.open(self.files[i]).convert("RGB"))

name, folder, out, n_workers = sys.argv[1:]
net = timm.create_model(name, pretrained=False, num_classes=0).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net), is_training=False)
loader = torch.utils.data.DataLoader(Photos(folder, transform), batch_size=16, num_workers=int(n_workers))
with torch.inference_mode():
    features = torch.cat([net(batch) for batch in loader])
torch.save(features, out)
"""
"""What someone who knows timm writes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--backbone", default="vit_base_patch16_clip_224.openai")
    parser.add_argument("--short", type=int, default=16)
    parser.add_argument("--long", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        short, long = (link_photos(args.photos, folder / f"photos {n}", n) for n in (args.short, args.long))
        more = args.long - args.short
        for turn in range(args.rounds):
            took = [extract(args, photos, folder / f"{turn} {photos.name}.zarr") for photos in (short, long)]
            ours.append(more / (took[1] - took[0]))
            # The cores are the same ones, so of several numbers of workers the best counts.
            rates = []
            for n_workers in (0, 1, 2):
                base = [run_script(args, photos, folder / "features.pt", n_workers) for photos in (short, long)]
                rates.append(more / (base[1] - base[0]))
            theirs.append(max(rates))
    figures["featstore extract, photos/s"], figures["timm with a DataLoader, photos/s"] = max(ours), max(theirs)
    figures["ratio"] = max(ours) / max(theirs)
    figures |= measure_layers(args)
    if args.json:
        print(json.dumps(figures, indent=2))
    else:
        for key, value in figures.items():
            print(f"{key:>40}  {value:.4g}" if isinstance(value, float) else f"{key:>40}  {value}")


def extract(args: argparse.Namespace, photos: Path, store: Path) -> float:
    """Seconds of the command, start-up and all."""
    options = ["--weights", "random:0", "--store", str(store), "--engine", args.engine, "--quiet"]
    return run([*FEATSTORE, "extract", str(photos), "--backbones", args.backbone, *options], store.parent)


def run_script(args: argparse.Namespace, photos: Path, out: Path, n_workers: int) -> float:
    """Seconds of the script, start-up and all."""
    return run([sys.executable, "-c", SCRIPT, args.backbone, str(photos), str(out), str(n_workers)], out.parent)


def run(command: list[str], folder: Path) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    return time.perf_counter() - started


def measure_layers(args: argparse.Namespace, seconds: float = 10.0) -> dict[str, Any]:
    """Milliseconds of a pass that gives the network's own feature, and of one that gives all its layers as well."""
    import torch

    from featstore.backbones import Output, Weights, find_card
    from featstore.backbones.networks import build_network
    from featstore.backbones.shapes import layers_of
    from featstore.backbones.sources import find_source
    from featstore.engines import Hardware, Runtime

    card = find_card(args.backbone)
    width, height = find_source(card.source).view(card).size
    hardware = Hardware.choose(Runtime(engine=args.engine))
    shape = (hardware.batch, height, width, 3)
    outputs = (Output(), *(Output(layer, "avg") for layer in layers_of(card)))
    engines = [
        hardware.load(
            build_network(card, Weights("random", seed=0), wanted),
            card,
            precision="fp32",
            shapes=[shape],
            note=lambda text: None,
        )
        for wanted in (outputs[:1], outputs)
    ]
    blocks = torch.zeros(shape, dtype=torch.uint8, device=hardware.device)
    took: list[list[float]] = [[], []]
    until = time.perf_counter() + 2 * seconds
    while time.perf_counter() < until:  # in turn, so that both have the same moods of the machine
        for engine, each in zip(engines, took, strict=True):
            started = time.perf_counter()
            engine.run(blocks)
            if hardware.device.type == "cuda":
                torch.cuda.synchronize(hardware.device)
            each.append(time.perf_counter() - started)
    last, all_of_them = (1000 * min(each) for each in took)
    return {
        "engine": engines[0].name,
        "own feature alone, ms": last,
        f"with all {len(outputs) - 1} layers, ms": all_of_them,
        "all layers, of the last": all_of_them / last,
    }


if __name__ == "__main__":
    main()
