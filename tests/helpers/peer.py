"""Another process with the same kind of driver, to share chunks with."""

from __future__ import annotations

import os
from typing import Any

from native._native import Driver
from tests.helpers.drivers import DriverCase
from tests.helpers.script import Script

SETUP = """
    from native._native import DriverError
    from tests.helpers.drivers import case_named
    from tests.helpers.window import Window
    case = case_named(sys.argv.pop())
    driver = case.open()
    CHUNK = driver.granularity
    window = Window(driver)
    tell(driver.share_id())

    def take():
        got = hear()
        return got if isinstance(got, int) else int(got)

    def let_go(shareable):
        if driver.sharing == "descriptor":
            os.close(shareable)

    def refused(verb, *args):
        before = facts()
        try:
            getattr(driver, verb)(*args)
        except DriverError as error:
            return error.name if facts() == before else "something changed"
        return "not refused"

    def facts():
        stats = driver.stats()
        return [stats.own_bytes, stats.imported_bytes, stats.mapped_bytes, stats.handles, stats.reservations]
"""


class Peer(Script):
    """A script with `driver`, `window`, `take()` (the shareable that `give` sends), `refused(verb, ...)` and `facts()`.

    `share_id` is what an owner must `permit`.
    """

    def __init__(self, case: DriverCase, code: str, **env: str) -> None:
        super().__init__(SETUP, code, (case.id,), case.environment(**env))
        self.share_id = int(self.answer())

    def give(self, driver: Driver, shareable: int) -> None:
        """Send what `driver` exported."""
        if driver.sharing == "descriptor":
            self.say("take", shareable)
        else:
            self.say(str(shareable))

    def ask(self, word: str) -> Any:
        self.say(word)
        return self.answer()


def let_go(driver: Driver, shareable: int) -> None:
    """Close what `driver` exported, where that is a descriptor."""
    if driver.sharing == "descriptor":
        os.close(shareable)
