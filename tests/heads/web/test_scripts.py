"""The libraries that draw are those that their makers released."""

import hashlib
from importlib.resources import files

import pytest

from heads.web import SCRIPTS


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_the_released_file(name: str) -> None:
    script = SCRIPTS[name]
    data = (files("heads.web") / script.file).read_bytes()
    assert hashlib.sha256(data).hexdigest() == script.sha256
    assert script.version.encode() in data[:120]
    assert script.text().encode() == data


def test_their_licences_travel_with_them() -> None:
    text = (files("heads.web") / "LICENSE-drawing.txt").read_text("utf-8")
    assert "Mike Bostock" in text
    assert "Observable, Inc." in text
