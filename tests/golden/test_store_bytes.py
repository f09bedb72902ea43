"""The same commands leave the same bytes."""

from typing import Any

import pytest

from . import making


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return making.look_at_small_store(tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize("when", ["made", "changed"])
def test_every_file_of_a_store_is_the_same(found: dict[str, Any], when: str) -> None:
    then = making.recorded("bytes.json")[when]
    assert list(found[when]) == list(then)
    assert found[when] == then
