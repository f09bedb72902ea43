"""Cells of CSV: what a spreadsheet would take for a formula is text, and comes back as it was."""

import pytest

from featstore.support import from_cell, to_cell

FORMULAS = ("=HYPERLINK(1).jpg", "+1.jpg", "-1.jpg", "@SUM(1)", "\t=1", "\r=1", "\n=1", "'=1", "''-1", "＝1")
TEXTS = ("-1", "+2.5e3", "a.jpg", "folder/=1.jpg", "'quoted'", "'", "", " x")


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_text_and_comes_back(text: str) -> None:
    assert to_cell(text) == f"'{text}"
    assert from_cell(to_cell(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_any_other_text_stays_as_it_is(text: str) -> None:
    assert to_cell(text) == from_cell(text) == text
