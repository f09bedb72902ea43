"""Summary: what an extraction tells whoever asked for it."""

from dataclasses import dataclass, field

from featstore.support import clock, counted, html_table

FAILURES_SHOWN = 20


@dataclass(repr=False)
class Summary:
    """What an extraction did; counts are of images, times in seconds."""

    store: str
    """What the store is called."""
    n_images: int = 0
    """Photos in the folder."""
    n_computed: int = 0
    """Images that were computed."""
    n_reused: int = 0
    """Images that had everything already."""
    n_waiting: int = 0
    """Images that some tensor cannot have yet, as it takes features that have to be imported."""
    n_both: int = 0
    """Of these, those that were computed for another tensor."""
    failed: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of every image that could not be read, of this run or an earlier one."""
    not_photos: list[str] = field(default_factory=list)
    """Paths of the files in the folder that are no photos."""
    new_tensors: list[str] = field(default_factory=list)
    """Those that the store did not have."""
    n_bytes: int = 0
    """Bytes of features that were written."""
    n_reclaimed: int = 0
    """Bytes of tensors that were replaced."""
    notices: list[str] = field(default_factory=list)
    """What else is good to know, such as what became of an earlier run that died at work."""
    elapsed_s: float = 0.0
    """All of it."""
    extracting_s: float = 0.0
    """Without listing photos and loading networks."""
    first_s: float = 0.0
    """From the call to the first photo's features."""
    stages_s: dict[str, float] = field(default_factory=dict)
    """By stage, how long its threads were busy, all together."""
    shares: dict[str, float] = field(default_factory=dict)
    """By stage, which part of the time its threads were busy; that of `forward` is how busy the device was."""
    engines: dict[str, str] = field(default_factory=dict)
    """By backbone, what ran it."""

    def __repr__(self) -> str:
        return f"<Summary of {self.store}: {self.counts}{self._more()}>"

    def _repr_html_(self) -> str:
        below = [f"note: {notice}" for notice in self.notices]
        if len(self.failed) > FAILURES_SHOWN:
            below.insert(0, f"{len(self.failed) - FAILURES_SHOWN} more failed; `summary.failed` has them all")
        above = f"{self.store}: {self.counts}{self._more()}"
        return html_table(("failed", "reason"), self.failed[:FAILURES_SHOWN], above=above, below="\n".join(below))

    def _more(self) -> str:
        rate = f"; {self.images_per_s:.2f} images/s" if self.n_computed else "; nothing to compute"
        new = f"; new tensors: {', '.join(self.new_tensors)}" if self.new_tensors else ""
        return f"{rate}, {clock(self.elapsed_s)} in all{new}"

    @property
    def counts(self) -> str:
        """In words, what became of the images."""
        waiting = f"{self.n_waiting} waiting, " if self.n_waiting else ""
        return (
            f"{counted(self.n_images, 'image')}: {self.n_computed} done, {self.n_reused} reused, {waiting}"
            f"{len(self.failed)} failed"
        )

    @property
    def images_per_s(self) -> float:
        """Images computed in a second of extraction; 0 if none were."""
        return self.n_computed / self.extracting_s if self.extracting_s else 0.0

    @property
    def limiting_stage(self) -> str | None:
        """The stage that the others waited for."""
        return max(self.shares, key=lambda stage: self.shares[stage]) if any(self.shares.values()) else None
