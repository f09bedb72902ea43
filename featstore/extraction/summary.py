"""Summary: what an extraction tells whoever asked for it."""

from dataclasses import dataclass, field


@dataclass
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

    @property
    def images_per_s(self) -> float:
        return self.n_computed / self.extracting_s if self.extracting_s else 0.0

    @property
    def limiting_stage(self) -> str | None:
        """The stage that the others waited for."""
        return max(self.shares, key=lambda stage: self.shares[stage]) if any(self.shares.values()) else None
