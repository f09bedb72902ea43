"""Ratings that people give on the page: a table on the disk (path, rater, rating, time) that `heads train` reads."""

import csv
import io
import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock

from featstore.files import read_file, refuse_what_is_no_file, replacing
from featstore.support import is_number
from heads.errors import LabelsError

HEADER = ("path", "rater", "rating", "time")
LONGEST_NAME = 60
MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class Rating:
    """What one rater says of one photo."""

    path: str
    rater: str
    rating: float
    time: str


class Ratings:
    """The ratings of a file; several people, and several servers, may write to it.

    A rating is on the disk when `add` returns. A rater has one rating of a photo: a new one takes its place.

    Args:
        file: made with the first rating.
        scale: the lowest and the highest rating.

    Raises:
        LabelsError: the file is there and is no table of ratings.
    """

    def __init__(self, file: Path, scale: tuple[float, float]) -> None:
        self.file, self.scale = file, scale
        self._thread = threading.Lock()
        self._lock = FileLock(f"{file}.lock")
        self.read()

    def read(self) -> list[Rating]:
        """All ratings, in the order in which they were given.

        A last line that a kill has cut off was of a rating that nobody was told is kept; it is passed over.

        Raises:
            LabelsError: the file is no table of ratings, or has one that is off the scale.
        """
        try:
            # A link in a folder of somebody else could make a rating write into any file of this user.
            for file in (self.file, self._lock.lock_file):
                refuse_what_is_no_file(file)
            text = read_file(self.file, MOST_BYTES).decode("utf-8-sig")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise LabelsError(f"{self.file} cannot be read: {error}") from error
        try:
            rows = list(csv.reader(io.StringIO(text, newline="")))
        except csv.Error as error:
            raise LabelsError(
                f"{self.file} is no table of ratings: {error}; name another file with --ratings"
            ) from error
        if not rows:
            return []
        if tuple(rows[0]) != HEADER:
            if not text.endswith("\n") and ",".join(HEADER).startswith(text):
                return []  # a kill in the middle of the first line
            raise LabelsError(
                f"{self.file} begins with the columns {', '.join(rows[0])[:80]}, and a table of ratings with "
                f"{', '.join(HEADER)}; name another file with --ratings"
            )
        found: list[Rating] = []
        for line, row in enumerate(rows[1:], 2):
            if line == len(rows) and not text.endswith("\n") and not _whole(row):
                break
            if not row:
                continue
            if not _whole(row):
                raise LabelsError(
                    f"{self.file}, line {line}: not a path, a rater, a rating and a time: {','.join(row)[:80]}"
                )
            low, high = self.scale
            if not low <= float(row[2]) <= high:
                raise LabelsError(
                    f"{self.file}, line {line}: the rating {row[2]} is not on the scale {low:g}:{high:g}; "
                    "say its own scale with --rate, or name another file with --ratings"
                )
            found.append(Rating(row[0], row[1], float(row[2]), row[3]))
        return found

    def add(self, path: str, rater: str, rating: float) -> Rating:
        """Keep a rating; it is on the disk when this returns.

        Raises:
            LabelsError: the name of the rater or the rating cannot be, or the file cannot be written.
        """
        new = Rating(
            path, check_rater(rater), self._check(rating), datetime.now(UTC).isoformat(timespec="milliseconds")
        )
        with self._thread, self._locked():
            known = self.read()
            try:
                if any((each.path, each.rater) == (path, new.rater) for each in known) or not self._is_whole():
                    kept = [each for each in known if (each.path, each.rater) != (path, new.rater)]
                    self._write([*kept, new])
                else:
                    self._append(new, first=not self.file.exists())
            except OSError as error:
                raise LabelsError(
                    f"the rating is not kept: {self.file} cannot be written ({error.strerror})"
                ) from error
        return new

    def remove(self, path: str, rater: str) -> None:
        """Take back what a rater has said of a photo; nothing happens if that is nothing.

        Raises:
            LabelsError: the name of the rater cannot be, or the file cannot be written.
        """
        rater = check_rater(rater)
        with self._thread, self._locked():
            known = self.read()
            kept = [each for each in known if (each.path, each.rater) != (path, rater)]
            try:
                if len(kept) < len(known):
                    self._write(kept)
            except OSError as error:
                raise LabelsError(f"{self.file} cannot be written ({error.strerror})") from error

    def _check(self, rating: float) -> float:
        low, high = self.scale
        if isinstance(rating, bool) or not isinstance(rating, int | float) or not low <= rating <= high:
            raise LabelsError(f"a rating is a number from {low:g} to {high:g}; found {str(rating)[:40]}")
        return rating

    def _locked(self) -> FileLock:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LabelsError(f"the folder of {self.file} cannot be made: {error.strerror}") from error
        return self._lock

    def _is_whole(self) -> bool:
        """Whether the file ends with a whole line, to which another can be added."""
        try:
            with self.file.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                return file.read(1) == b"\n"
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def _append(self, new: Rating, *, first: bool) -> None:
        with self.file.open("ab") as file:
            if first:
                file.write(_line(HEADER))
            file.write(_line((new.path, new.rater, f"{new.rating:g}", new.time)))
            file.flush()
            os.fsync(file.fileno())

    def _write(self, ratings: list[Rating]) -> None:
        with replacing(self.file) as file:
            file.write(_line(HEADER))
            for each in ratings:
                file.write(_line((each.path, each.rater, f"{each.rating:g}", each.time)))


def check_rater(name: object) -> str:
    """The name of a rater: letters, digits, spaces and . _ - @, a letter or digit first.

    Raises:
        LabelsError: it is anything else.
    """
    text = " ".join(name.split()) if isinstance(name, str) else ""
    if (
        not text
        or len(text) > LONGEST_NAME
        or not text[0].isalnum()
        or not all(c.isalnum() or c in " ._-@" for c in text)
    ):
        raise LabelsError(
            f"the name of a rater has up to {LONGEST_NAME} letters, digits, spaces and . _ - @, and begins with a "
            f"letter or a digit; found {str(name)[:80]!r}"
        )
    return text


def _whole(row: list[str]) -> bool:
    return len(row) == len(HEADER) and all(row) and is_number(row[2]) and len(row[3]) >= len("2026-01-01T00:00")


def _line(cells: tuple[str, ...]) -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerow(cells)
    return stream.getvalue().encode("utf-8", "surrogateescape")
