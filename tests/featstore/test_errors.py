"""The tree of errors that the docstring draws is the tree of the classes."""

import re

from featstore import errors
from featstore.errors import FeatstoreError, suggest
from heads.errors import HeadsError, LabelsError


def test_the_tree_that_is_drawn_is_that_of_the_classes() -> None:
    drawn: list[tuple[int, str]] = []
    for line in str(errors.__doc__).split("```")[1].splitlines():
        if found := re.search(r"\w+Error", line):
            drawn.append((found.start() // 4, found.group()))
    parents = [next((name for d, name in reversed(drawn[:i]) if d < depth), None) for i, (depth, _) in enumerate(drawn)]
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, FeatstoreError)]
    assert [(name, parent) for (_, name), parent in zip(drawn, parents, strict=True)] == [
        (each.__name__, None if each is FeatstoreError else each.__base__.__name__) for each in classes
    ]


def test_a_suggestion_is_one_near_name_in_whatever_case_or_a_list_that_ends() -> None:
    assert suggest("OpenVINO", ["eager", "openvino"]) == "did you mean 'openvino'?"
    assert suggest("Eagr", ["Eager", "openvino"]) == "did you mean 'Eager'?"
    assert suggest("zzz", ["a", "b"]) == "known: a, b"
    assert suggest("zzz", []) == "there are none"
    assert suggest("zzz", [f"column {number:03d}" for number in range(500)]).endswith("column 019 and 480 more")


def test_no_message_steers_a_terminal_whoever_shows_it() -> None:
    for error in (FeatstoreError, errors.StoreWriteError, HeadsError, LabelsError):
        said = str(error("photo \x1b[2J\u202egnp.exe\x07\nnext line\tübergroß 写真"))
        assert said == "photo \ufffd[2J\ufffdgnp.exe\ufffd\nnext line\tübergroß 写真"
