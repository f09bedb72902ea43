"""What an extraction is asked to run on."""

from dataclasses import dataclass

from featstore.errors import ConfigError, suggest

ENGINES = ("auto", "eager", "compile", "openvino", "graph")


@dataclass(frozen=True)
class Runtime:
    """Device, engine, photos in one pass, and helpers; what is not said is chosen to fit the machine.

    Raises:
        ConfigError: an unknown engine, or a number below 1.
    """

    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    engine: str = "auto"
    """auto, eager, compile, openvino (CPU) or graph (CUDA)."""
    batch: int | None = None
    """Photos in one pass: 1 on a CPU, where more is no faster."""
    workers: int = 0
    """Processes of their own, one for each GPU; 0 computes in this one."""
    scheduler: str | None = None
    """The address of a Dask scheduler whose workers compute."""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ConfigError(f"unknown --engine {self.engine!r}; {suggest(self.engine, ENGINES)}")
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"--batch {self.batch}: at least one photo has to be in a pass")
        if self.workers < 0:
            raise ConfigError(f"--workers {self.workers}: a number of processes, or 0 to compute in this one")

        if self.workers and self.scheduler is not None:
            raise ConfigError("--workers starts processes here, --scheduler uses those of others; name one of them")

    @property
    def distributed(self) -> bool:
        return bool(self.workers) or self.scheduler is not None
