"""Every error that featstore raises on purpose.

```
FeatstoreError
├── ConfigError            featstore.toml or an option does not make sense
├── ClusterError           the workers of a run cannot be had, cannot compute what is asked, or died
├── PhotosError            the photo folder is missing, empty or unreadable
├── ImageError             one photo cannot be decoded (recorded in its row; never ends a run)
│   └── UnavailableError   not read for a reason outside of the photo: its disk, a package that is not installed, a
│                          limit that was set (nothing is recorded; the next run tries again)
├── TooManyFailedError     more photos could not be read than was allowed; the others are kept
├── BackboneError          a backbone is unknown or cannot serve what is asked of it
│   ├── UnknownBackboneError  no network has that name
│   ├── UnfitBackboneError its network cannot be built, or not run on pictures of this size (others of a run go on)
│   └── WeightsError       its weights cannot be had, or do not fit
│       └── MissingWeightsError   there are none on this machine (`--allow-missing` goes on without)
├── DeviceLostError        the GPU computes no more (what was computed is kept)
├── FeatureRangeError      a feature is not a number, or the stored dtype cannot hold it
├── ExchangeError          a file of features from elsewhere cannot be taken in, or one for elsewhere cannot be made
└── StoreError             the store cannot serve what is asked of it
    ├── FormatError        it is not a store, or a store of another format version
    ├── LayoutError        it holds something else under that name
    ├── DamagedError       what is stored is not what was written: its checksum, size or place is wrong
    │   └── LostError      a chunk of a shared repository is not there
    ├── AbsentRowsError    rows were asked for that are not present
    ├── LockedError        another process is writing to it
    ├── BrokenOffError     an answer from a bucket did not come, or broke off in the middle, every time
    └── StoreWriteError    the disk refused: full, read-only, or no permission
```

Each message is written for the person at the terminal: what was found, what was expected, what to do.
"""

import difflib
import unicodedata
from collections.abc import Iterable

MEND = "`featstore verify` lists all damage, `featstore repair` lets `extract` compute it again"
SUGGESTED = 20
"""How many known names a message has, where none is near."""


HARMFUL = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Categories of characters that steer a terminal, turn the direction of text, or end a line."""


class FeatstoreError(Exception):
    """The root of the tree: catching it catches everything that featstore raises on purpose."""

    def __str__(self) -> str:
        return harmless(super().__str__())


def harmless(message: str) -> str:
    """A message without the control characters that other people's names, or a library's words for them, may have."""
    if message.isprintable():
        return message
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if char not in "\n\t" and unicodedata.category(char) in HARMFUL else char
        for char in message
    )


class ConfigError(FeatstoreError):
    pass


class ClusterError(FeatstoreError):
    pass


class PhotosError(FeatstoreError):
    pass


class ImageError(FeatstoreError):
    pass


class UnavailableError(ImageError):
    pass


class TooManyFailedError(FeatstoreError):
    pass


class BackboneError(FeatstoreError):
    pass


class UnknownBackboneError(BackboneError):
    pass


class UnfitBackboneError(BackboneError):
    """Says which backbone, and why."""

    def __init__(self, backbone: str, reason: str) -> None:
        super().__init__(f"backbone {backbone!r}: {reason}")
        self.backbone, self.reason = backbone, reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return UnfitBackboneError, (self.backbone, self.reason)


class WeightsError(BackboneError):
    pass


class MissingWeightsError(WeightsError):
    pass


class DeviceLostError(FeatstoreError):
    pass


class FeatureRangeError(FeatstoreError):
    pass


class ExchangeError(FeatstoreError):
    pass


class StoreError(FeatstoreError):
    pass


class FormatError(StoreError):
    pass


class LayoutError(StoreError):
    pass


class DamagedError(StoreError):
    pass


class LostError(DamagedError):
    pass


class AbsentRowsError(StoreError):
    pass


class LockedError(StoreError):
    pass


class BrokenOffError(StoreError):
    pass


class StoreWriteError(StoreError):
    pass


def suggest(name: str, known: Iterable[str]) -> str:
    """The sentence that follows "unknown NAME": the nearest known name, in whatever case, or else the first of them."""
    choices = sorted(set(known))
    folded = {each.casefold(): each for each in reversed(choices)}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    if name.casefold() in folded or near:
        return f"did you mean {folded.get(name.casefold()) or folded[near[0]]!r}?"
    more = f" and {len(choices) - SUGGESTED} more" if len(choices) > SUGGESTED else ""
    return f"known: {', '.join(choices[:SUGGESTED])}{more}" if choices else "there are none"
