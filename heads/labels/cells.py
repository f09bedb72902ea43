"""What a cell of a label table says: a number, yes or no, nothing, or text that is taken as it stands.

Names of classes are text, whatever they look like: `1.10` and `1.1`, `007` and `7` are two classes.
"""

import re
from collections.abc import Collection, Sequence

from featstore.support import is_number, nearly_number

NO_NUMBER = ("na", "nan", "n/a", "n.a.", "#n/a", "<na>", "null", "none")
"""Words that say in a column of numbers, or of yes and no, that there is none; elsewhere each may be a class."""
_YES, _NO = ("yes", "y", "true", "t"), ("no", "n", "false", "f")
_WITH_COMMA = re.compile(r"[+-]?\d*,\d+", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
EXACT = 2**53
"""From here on, numbers with floating point are not all whole numbers."""


def is_no_number(text: str) -> bool:
    """Whether it says that there is no number."""
    return not text or text.lower() in NO_NUMBER


def as_bit(text: str) -> float | None:
    """1 of yes, 0 of no, None of all else."""
    if text.lower() in (*_YES, *_NO):
        return float(text.lower() in _YES)
    return float(text) if is_number(text) and float(text) in (0, 1) else None


def are_bits(cells: Collection[str]) -> bool:
    known = [text for text in cells if not is_no_number(text)]
    return bool(known) and all(as_bit(text) is not None for text in known)


def are_codes(cells: Collection[str]) -> bool:
    """Whether they are whole numbers that are names, for as numbers some would be the same: 007, 12345678901234567."""
    known = [text for text in cells if not is_no_number(text)]
    return all(map(_WHOLE.fullmatch, known)) and any(
        (len(text) > 1 and text[0] == "0") or len(text) > 17 or abs(int(text)) >= EXACT for text in known
    )


def meant_as_numbers(cells: Collection[str]) -> bool:
    """Whether most of them are numbers, or look so much like some that they are mended rather than passed over."""
    known = [text for text in cells if not is_no_number(text)]
    return sum(is_number(text) or nearly_number(text) for text in known) * 2 > len(known)


def has_decimal_commas(cells: Collection[str]) -> bool:
    """Whether commas are the points of a column: in half of its cells or more, no other point, and not all 1,234."""
    known = [text for text in cells if not is_no_number(text)]
    commas = [text for text in known if _WITH_COMMA.fullmatch(text)]
    return (
        len(commas) * 2 >= max(1, len(known))
        and not any("." in text for text in known)
        and not all(map(_THOUSANDS.fullmatch, commas))
    )


def with_points(cells: Sequence[str]) -> list[str]:
    """The cells with decimal points, if they have decimal commas."""
    return [text.replace(",", ".") for text in cells] if has_decimal_commas(cells) else list(cells)


def why_no_number(text: str) -> str:
    """What to do about a cell that should be a number and is none."""
    if _THOUSANDS.fullmatch(text):
        return f"it may be {text.replace(',', '.', 1)} or {text.replace(',', '')}; write it without the comma"
    if nearly_number(text):
        return "write it with the digits 0 to 9 and a point, as 4.86, or say --kind multiclass if it names a class"
    return f"correct it, or say --missing {text!r} if it means that there is none"
