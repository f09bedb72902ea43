"""The page as files: a folder that opens from the disk, from a supplement or from any web host, without a server."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from featstore.support import Progress, no_progress
from heads.errors import HeadsError
from heads.explore.documents import Documents
from heads.explore.pages import ASSETS, asset, index
from heads.explore.thumbnails import Thumbnails

CHUNK = 100
"""Photos whose neighbours are in one file; source.js knows it, too."""
MOST_NEIGHBOURS = 20_000
"""Photos; more than so many have no neighbours in a page of files, as all of them would have to be looked for."""
INDEX = "index.html"


def write_static(
    documents: Documents,
    folder: Path,
    *,
    thumbnails: Thumbnails | None,
    large: bool = True,
    on_progress: Progress = no_progress,
) -> tuple[int, int]:
    """Write the page into a new folder; return how many pictures and bytes it has.

    Args:
        thumbnails: None leaves all photos away.
        large: also photos to look at, besides the thumbnails.

    Raises:
        HeadsError: the folder is there and has files, or cannot be written.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise HeadsError(f"{folder} is there already; name a new folder, or remove it first")
    folder = folder.absolute()  # "." has no name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
        try:
            n_pictures = _write(documents, part, thumbnails, large, on_progress)
            if folder.exists():
                folder.rmdir()
            part.chmod(0o755)  # as a folder that others may read
            part.rename(folder)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    except OSError as error:
        raise HeadsError(f"{folder} cannot be written: {error.strerror or error}") from error
    return n_pictures, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _write(
    documents: Documents, folder: Path, thumbnails: Thumbnails | None, large: bool, on_progress: Progress
) -> int:
    study = documents.study
    for name in ("page", "data", "small", "large"):
        (folder / name).mkdir()
    (folder / INDEX).write_text(index("static", study.name), "utf-8")
    for name in ASSETS:
        (folder / "page" / name).write_text(asset(name), "utf-8")
    if documents.spaces is not None:
        documents.spaces.read(on_progress)
    absent = []
    for photo in range(len(study) if thumbnails is not None else 0):
        assert thumbnails is not None
        small = thumbnails.small(photo)
        if small is None:
            absent.append(photo)
            continue
        (folder / "small" / f"{photo}.jpg").write_bytes(small)
        if large:
            (folder / "large" / f"{photo}.jpg").write_bytes(thumbnails.large(photo) or small)
        on_progress("photos", photo + 1, len(study))
    for name in documents.names:
        value = documents.get(name)
        if name == "study":
            value = {
                **value,
                "pictures": thumbnails is not None,
                "largest": "large" if large else "small",
                "absent": absent,
            }
        _document(folder, name, value)
    if documents.spaces is not None:
        for start in range(0, len(study), CHUNK):
            photos = range(start, min(start + CHUNK, len(study)))
            few = len(study) <= MOST_NEIGHBOURS
            _document(folder, f"photos-{start // CHUNK}", [documents.photo(i) if few else None for i in photos])
            on_progress("neighbours", photos.stop, len(study))
    return len(study) - len(absent) if thumbnails is not None else 0


def _document(folder: Path, name: str, value: Any) -> None:
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # in ASCII, as a script has no character set
    (folder / "data" / f"{name}.js").write_text(f"explored({json.dumps(name)},{text});\n", "ascii")
