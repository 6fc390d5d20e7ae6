"""What processes are asked, and what they have heard."""

from __future__ import annotations

from native.daemon.notices import Notices
from native.protocol import News


def test_each_hears_what_it_is_asked_until_it_says_so() -> None:
    notices = Notices(1)
    assert notices.news(1, 0) is None
    notices.let_go(1, 70)
    notices.spare(1, "digest")
    notices.let_go(2, 71)
    first = notices.news(1, 0)
    assert first is not None
    assert (first.let_go, first.spare) == ((70,), ("digest",))
    assert notices.news(1, 0) == first, "the answer may have been lost"
    assert notices.news(1, first.last) is None
    other = notices.news(2, 0)
    assert other is not None
    assert other.let_go == (71,)


def test_asking_again_is_news_again() -> None:
    notices = Notices(1)
    notices.spare(1, "digest")
    first = notices.news(1, 0)
    assert first is not None
    notices.spare(1, "digest")
    notices.spare(1, "digest")
    again = notices.news(1, first.last)
    assert again == News(again.last if again else 0, (), ("digest",))


def test_what_an_earlier_daemon_said_last_hides_nothing() -> None:
    before, after = Notices(1), Notices(2)
    for view in range(1000):
        before.let_go(1, view + 1)
    heard = before.news(1, 0)
    assert heard is not None
    after.let_go(1, 5)
    assert after.news(1, heard.last) is not None


def test_the_dead_hear_nothing() -> None:
    notices = Notices(1)
    notices.let_go(1, 70)
    notices.forget(1)
    assert notices.news(1, 0) is None
