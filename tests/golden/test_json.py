"""What scripts get from --json: the same keys, with values of the same types."""

from typing import Any

import pytest

from . import making, tree

THEN = making.recorded("json.json")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tree.look_at_json(tmp_path_factory.mktemp("json"))


@pytest.mark.parametrize("command", THEN)
def test_the_keys_and_types_of_what_is_printed(found: dict[str, Any], command: str) -> None:
    assert {key: found[command].get(key) for key in THEN[command]} == THEN[command]


def test_every_command_that_has_json_is_here(found: dict[str, Any]) -> None:
    commands = making.recorded("commands.json")
    with_json = {name for program in commands.values() for name, options in program.items() if "as_json" in options}
    elsewhere = {
        "featstore concepts",  # needs a network with text: tests/featstore/exchange/test_concepts.py
        "featstore codebook",  # needs photos of some size: tests/featstore/cli/test_commands.py
        "pipelines aenet",  # these train networks: tests/pipelines/test_recipes.py
        "pipelines suhail",
        "heads explore",  # serves, or writes a page: tests/heads/explore
        "pipelines audit",  # needs a network that classifies: tests/pipelines/test_audit.py
    }
    assert {name.partition(" --")[0] for name in found} == with_json - elsewhere
