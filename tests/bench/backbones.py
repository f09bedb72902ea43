"""Every pretrained tag of timm: does it load, is its feature the network's own, and if not, why?

python tests/bench/backbones.py [PATTERN] [--most-parameters 120e6] [--out TABLE.csv]

For each tag the weights of timm's own network, as released, are loaded through featstore and the feature of a picture
of noise is held against timm's (1e-4). Networks above the limit are loaded without being run, those above ten times
the limit are built without data only. Takes about an hour and a half on two cores; a table that is there is gone on
with.
"""

import argparse
import collections
import csv
import time
from pathlib import Path

import timm
import torch

from featstore.backbones import Output, find_card
from featstore.backbones.networks import Network
from featstore.backbones.shapes import shape_of
from featstore.backbones.sources import find_source
from tests.featstore.backbones.released import CLOSE, Finding, apart, no_init, noise, normalise, released

LONG_S = 20.0


def check(tag: str, most_parameters: float) -> Finding:
    """Load one tag as released, and run it where it is not too large."""
    try:
        card = find_card(tag)
        source = find_source(card.source)
        view = source.view(card)
        with torch.device("meta"):
            n_parameters = sum(each.numel() for each in timm.create_model(tag).parameters())
        if n_parameters > 10 * most_parameters:
            _, width = shape_of(card, Output(), view.size)
            return Finding(tag, "builds", f"{width} features; {n_parameters / 1e6:.0f} M parameters", n_parameters)
        net = released(tag, fast=True)
        state = net.state_dict()
        with no_init():
            trunk = source.load(card, state, Path("released"))
        loaded = trunk.net.state_dict()
        wrong = [name for name, value in loaded.items() if name in state and not torch.equal(value, state[name])]
        if wrong:
            return Finding(tag, "differs", f"{len(wrong)} tensors, as of {wrong[0]}", n_parameters)
        pixels = view.size[0] * view.size[1]
        if n_parameters > most_parameters or n_parameters * pixels > most_parameters * 400 * 400:
            _, width = shape_of(card, Output(), view.size)
            return Finding(tag, "loads", f"{width} features; {n_parameters / 1e6:.0f} M parameters", n_parameters)
        blocks = noise(tag)
        net.reset_classifier(0)  # type: ignore[operator]
        with torch.inference_mode():
            theirs = net(normalise(tag, blocks))
            (ours,) = Network(card, trunk).eval()(blocks)
        distance = apart(ours, theirs)
        outcome = "equal" if distance <= CLOSE else "differs"
        return Finding(tag, outcome, f"{distance:.0e}, {ours.shape[1]} features", n_parameters)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        return Finding(tag, "refused", f"{type(error).__name__}: {reason}"[:200])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="*")
    parser.add_argument("--most-parameters", type=float, default=120e6, help="of networks that are run [120e6]")
    parser.add_argument("--out", type=Path, default=Path("backbones.csv"))
    options = parser.parse_args()
    done = []
    if options.out.exists():
        with options.out.open(newline="") as file:
            done = [Finding(row["tag"], row["outcome"], row["detail"]) for row in csv.DictReader(file)]
    else:
        options.out.write_text("tag,outcome,detail\n")
    known = {each.tag for each in done}
    tags = [tag for tag in timm.list_pretrained(options.pattern) if tag not in known]
    for tag in tags:
        started = time.perf_counter()
        finding = check(tag, options.most_parameters)
        done.append(finding)
        with options.out.open("a", newline="") as file:
            csv.writer(file).writerow([tag, finding.outcome, finding.detail])
        if (seconds := time.perf_counter() - started) > LONG_S or finding.outcome in ("differs", "refused"):
            print(f"{len(done)} {tag}: {finding.outcome}, {finding.detail} ({seconds:.0f} s)", flush=True)
    counts = collections.Counter(each.outcome for each in done)
    print(f"timm {timm.__version__}, {len(done)} tags: " + ", ".join(f"{n} {what}" for what, n in counts.most_common()))


if __name__ == "__main__":
    main()
