"""Every pretrained tag of timm: does it load, is its feature the network's own, and if not, why?

python tests/bench/backbones.py [PATTERN] [--most-parameters 30e6] [--out TABLE.csv]

For each tag the weights of timm's own network, as released, go through featstore's loading: without data, which shows
that every tensor finds its place. Of each architecture up to the limit one tag is then loaded with weights, and the
feature of a picture of noise is held against timm's (1e-4). A table that is there is gone on with.
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


def check(tag: str, most_parameters: float, equal: set[str]) -> Finding:
    """Load one tag as released; run it where it is not too large, and its architecture is not among the equal ones."""
    try:
        card = find_card(tag)
        source = find_source(card.source)
        view = source.view(card)
        with torch.device("meta"):
            empty = timm.create_model(tag).state_dict()
            source.load(card, empty, Path("released"))
        _, width = shape_of(card, Output(), view.size)
        n_parameters = sum(each.numel() for each in empty.values())
        told = f"{width} features; {n_parameters / 1e6:.0f} M parameters"
        if card.network in equal:
            return Finding(tag, "loads", f"{told}; another tag of {card.network} is equal")
        if n_parameters > most_parameters or n_parameters * view.size[0] * view.size[1] > most_parameters * 300 * 300:
            return Finding(tag, "loads", f"{told}; not run")
        net = released(tag, fast=True)
        state = net.state_dict()
        with no_init():
            trunk = source.load(card, state, Path("released"))
        blocks = noise(tag)
        net.reset_classifier(0)  # type: ignore[operator]
        with torch.inference_mode():
            theirs = net(normalise(tag, blocks))
            (ours,) = Network(card, trunk).eval()(blocks)
            distance = apart(ours, theirs)
            if distance > CLOSE:  # a digit that grows through the layers, or another network?
                pixels = normalise(tag, blocks).double()
                distance = apart(trunk.net.double()(pixels), net.double()(pixels))
                told += "; in float64"
        return Finding(tag, "equal" if distance <= CLOSE else "differs", f"{told}; {distance:.0e} apart")
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        return Finding(tag, "refused", f"{type(error).__name__}: {reason}"[:200])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="*")
    parser.add_argument("--most-parameters", type=float, default=30e6, help="of networks that are run [30e6]")
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
        equal = {each.tag.partition(".")[0] for each in done if each.outcome == "equal"}
        finding = check(tag, options.most_parameters, equal)
        done.append(finding)
        with options.out.open("a", newline="") as file:
            csv.writer(file).writerow([tag, finding.outcome, finding.detail])
        if (seconds := time.perf_counter() - started) > LONG_S or finding.outcome in ("differs", "refused"):
            print(f"{len(done)} {tag}: {finding.outcome}, {finding.detail} ({seconds:.0f} s)", flush=True)
    counts = collections.Counter(each.outcome for each in done)
    print(f"timm {timm.__version__}, {len(done)} tags: " + ", ".join(f"{n} {what}" for what, n in counts.most_common()))


if __name__ == "__main__":
    main()
