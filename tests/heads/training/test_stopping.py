"""Early stopping: the rule by itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heads.training.stopping import EarlyStopping, Verdict


def test_it_stops_once_the_loss_has_not_fallen_for_so_many_epochs() -> None:
    rule = EarlyStopping(patience=2)
    verdicts = [rule.judge(epoch, loss) for epoch, loss in enumerate([3.0, 2.0, 2.0, 1.0, 1.5, 1.0], 1)]
    assert [verdict.keep for verdict in verdicts] == [True, True, False, True, False, False]
    assert [verdict.stop for verdict in verdicts] == [False, False, False, False, False, True]
    assert (rule.best_epoch, rule.best_loss) == (4, 1.0)


@given(losses=st.lists(st.floats(-5, 5), min_size=1, max_size=30), patience=st.integers(1, 5))
def test_the_best_epoch_is_the_first_of_the_least_loss_so_far(losses: list[float], patience: int) -> None:
    rule = EarlyStopping(patience)
    for epoch, loss in enumerate(losses, 1):
        verdict = rule.judge(epoch, loss)
        best = losses.index(min(losses[:epoch])) + 1
        assert rule.best_epoch == best
        assert verdict == Verdict(keep=best == epoch, stop=epoch - best >= patience)


@pytest.mark.parametrize(("patience", "loss"), [(0, 1.0), (3, None)], ids=["no patience", "no inner rows"])
def test_without_patience_or_inner_rows_the_last_epoch_is_the_best(patience: int, loss: float | None) -> None:
    rule = EarlyStopping(patience)
    for epoch in range(1, 20):
        assert rule.judge(epoch, loss) == Verdict(keep=False, stop=False)
        assert rule.best_epoch == epoch
