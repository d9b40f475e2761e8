"""What becomes of a place, by how its workers have ended."""

import pytest

from service.processes.account import Account

GOOD_S, SHORT_S = 11.0, 9.0


@pytest.mark.parametrize(
    ("ended_soon", "pause_s"), [(1, 0), (5, 0), (6, 1), (7, 2), (8, 4), (9, 8), (10, 16), (11, 30), (2000, 30)]
)
def test_pauses_double_up_to_a_bound(ended_soon: int, pause_s: float) -> None:
    account = Account()
    for _ in range(ended_soon):
        account.served(SHORT_S)
    assert account.pause_s == pause_s


def test_after_a_good_one_others_are_replaced_at_once_again() -> None:
    account = Account()
    for _ in range(9):
        account.served(SHORT_S)
    account.served(GOOD_S)
    assert account.pause_s == 0
    for _ in range(5):
        account.served(SHORT_S)
    assert account.pause_s == 1


def test_what_could_not_begin_is_tried_again_after_a_pause_that_grows() -> None:
    account, pauses = Account(), []
    for _ in range(3):
        account.could_not_begin()
        pauses.append(account.pause_s)
    assert pauses == [1, 2, 4]


def test_three_in_a_row_that_did_not_listen_are_hopeless() -> None:
    account = Account()
    account.did_not_listen()
    account.could_not_begin()
    assert not account.is_hopeless
    account.did_not_listen()
    assert (account.is_hopeless, account.failed) == (True, 3)
    account.served(SHORT_S)
    assert (account.is_hopeless, account.failed) == (False, 0)
