"""Draw the stages of a run over time, from what `featstore extract --trace FILE` wrote.

featstore extract PHOTOS --store s.zarr -b packaged --trace trace.json
python tests/bench/timeline.py trace.json timeline.png --from 20 --seconds 2
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt

COLOURS = {"decode": "#4c78a8", "forward": "#f58518", "write": "#54a24b"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--from", dest="start", type=float, default=0.0, help="seconds from the beginning of the run")
    parser.add_argument("--seconds", type=float, default=None, help="how much of it [to its end]")
    args = parser.parse_args()
    events = [event for event in json.loads(args.trace.read_text()) if event]
    end = max(event["ts"] + event["dur"] for event in events) / 1e6
    until = end if args.seconds is None else args.start + args.seconds
    lanes = {name: i for i, name in enumerate(dict.fromkeys(lane(event) for event in sorted(events, key=order)))}
    figure, axes = plt.subplots(figsize=(10, 0.5 * len(lanes) + 1), layout="constrained")
    for event in events:
        axes.barh(
            lanes[lane(event)],
            event["dur"] / 1e6,
            left=event["ts"] / 1e6,
            color=COLOURS[event["name"]],
            edgecolor="white",
            linewidth=0.3,
        )
    axes.set(xlim=(args.start, until), xlabel="seconds", yticks=list(lanes.values()), yticklabels=list(lanes))
    axes.invert_yaxis()
    figure.savefig(args.picture, dpi=120)


def lane(event: dict[str, object]) -> str:
    return f"{event['name']} {event['tid']}"


def order(event: dict[str, object]) -> tuple[int, object]:
    return list(COLOURS).index(str(event["name"])), event["tid"]


if __name__ == "__main__":
    main()
