"""Plain ASCII where a terminal or pipe is not UTF-8: one codec under both streams, whoever writes to them.

Our own lines, `--help`, progress bars and what libraries print all go through the streams, so none of them can end in
an UnicodeEncodeError, and none has to know about it.
"""

import codecs
import io
import os
import re
import sys
from typing import Any, TextIO

PLAIN = "featstore_plain"
"""ASCII under a name of its own: click takes a stream that says `ascii` for a mistake, and writes UTF-8 into it."""

_WORDS = {
    "×": "x",
    "±": "+-",
    "–": "-",
    "—": "-",
    "−": "-",
    "…": "...",
    "·": ".",
    "•": "*",
    "→": "->",
    "←": "<-",
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "µ": "u",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
    "\N{NO-BREAK SPACE}": " ",
    "\N{REPLACEMENT CHARACTER}": "?",
}
_ACROSS, _DOWN, _BOX, _BLOCK = "─━╌╍┄┅┈┉═╴╶╸╺", "│┃┆┇┊┋║", range(0x2500, 0x2580), range(0x2580, 0x25A0)
_COERCED = ("C.UTF-8", "C.utf8", "UTF-8")
"""What Python makes of LC_CTYPE where the user has said C."""
_SURROGATES = re.compile("[\ud800-\udfff]")


def adapt_streams() -> None:
    """Make standard output and standard error plain if they are not UTF-8; each command calls it once, first of all.

    Commands that this one starts are plain then, too. Names of files that are not UTF-8 go into a UTF-8 pipe as the
    bytes that they are.
    """
    # Not somebody else's stream, as in a notebook or a test.
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    others = [stream for stream in streams if not _is_utf8(stream)]
    for stream in others:
        stream.reconfigure(encoding=PLAIN, errors=PLAIN)
    if others:
        os.environ.setdefault("PYTHONIOENCODING", "ascii:backslashreplace")
    if sys.stdout in streams and sys.stdout not in others:
        sys.stdout.reconfigure(errors="surrogateescape")


def is_plain(stream: TextIO) -> bool:
    """Whether a stream takes ASCII only."""
    return not _says_utf8(stream)


def plain(text: str) -> str:
    """Printable ASCII and line breaks: signs in their usual spelling, anything else as an escape, as `caf\\xe9.jpg`."""
    return "".join(char if char == "\n" or " " <= char <= "~" else _spell(char) for char in text)


def plain_json(text: str) -> str:
    """JSON in which only surrogates, of file names that are not UTF-8, are escaped: they cannot be written."""
    return _SURROGATES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _spell(char: str) -> str:
    if char in _WORDS:
        return _WORDS[char]
    if ord(char) in _BOX:
        return "-" if char in _ACROSS else "|" if char in _DOWN else "+"
    return "#" if ord(char) in _BLOCK else ascii(char)[1:-1]


def _is_utf8(stream: TextIO) -> bool:
    """Whether a stream takes UTF-8, by its encoding and by what the user says of the terminal.

    Python itself writes UTF-8 where the locale is C or POSIX (PEP 538 and 540); a terminal of that locale shows
    rubbish. Where nothing is said at all, as in containers, Python is right more often than not.
    """
    if not _says_utf8(stream):
        return False
    if os.environ.get("PYTHONIOENCODING", "").partition(":")[0] or os.environ.get("PYTHONUTF8") == "1":
        return True
    if "utf8" in sys._xoptions:
        return True
    category = os.environ.get("LC_CTYPE", "")
    if category in _COERCED and (sys.flags.utf8_mode or os.environ.get("PYTHONUTF8") == "0"):
        category = ""  # Python's word, not the user's
    said = os.environ.get("LC_ALL") or category or os.environ.get("LANG") or ""
    codeset = said.partition(".")[2].partition("@")[0]
    return said not in ("C", "POSIX") and (not codeset or _is_utf8_name(codeset))


def _says_utf8(stream: TextIO) -> bool:
    return _is_utf8_name(getattr(stream, "encoding", None) or "utf-8")


def _is_utf8_name(encoding: str) -> bool:
    return encoding.lower().replace("-", "").replace("_", "") in ("utf8", "utf8sig")


def _find_codec(name: str) -> codecs.CodecInfo | None:
    if name != PLAIN:
        return None
    ascii_codec: Any = codecs.lookup("ascii")
    return codecs.CodecInfo(
        ascii_codec.encode,
        ascii_codec.decode,
        streamreader=ascii_codec.streamreader,
        streamwriter=ascii_codec.streamwriter,
        incrementalencoder=ascii_codec.incrementalencoder,
        incrementaldecoder=ascii_codec.incrementaldecoder,
        name=PLAIN,
    )


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spell, error.object[error.start : error.end])), error.end


codecs.register(_find_codec)
codecs.register_error(PLAIN, _replace)
