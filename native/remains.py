"""Free chunks that still hold what their last owner left there, by the name of that content. PURE book-keeping.

Whoever comes back for a content takes the chunks that are left of it and copies only the rest. It costs nobody
anything: the chunks are free, and whoever needs them gets them, the content that was left longest ago first, from its
end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple


class Found(NamedTuple):
    """What is left of some places of a content: chunk by place, counted from `first`."""

    content: str = ""
    first: int = 0
    chunks: Mapping[int, int] = MappingProxyType({})


NOTHING = Found()


class Remains:
    """Contents in the order in which they were left. A content is a sequence of chunks; the *place* of a chunk is its
    index in it."""

    def __init__(self) -> None:
        self._contents: dict[str, dict[int, int]] = {}
        self._count = 0

    def __len__(self) -> int:
        """Chunks that hold something."""
        return self._count

    def leave(self, content: str, chunks: Iterable[int]) -> bool:
        """These chunks are free and hold `content`, in this order. False, and nothing is noted: other chunks do."""
        if content in self._contents:
            return False
        places = dict(enumerate(chunks))
        if places:
            self._contents[content] = places
            self._count += len(places)
        return True

    def find(self, content: str, first: int, count: int) -> Found:
        """What is left of the places `first … first + count - 1`."""
        places = self._contents.get(content, {})
        wanted = range(first, first + count)
        return Found(content, first, {place - first: places[place] for place in wanted if place in places})

    def take(self, found: Found) -> None:
        """What `find` just found is free no more."""
        places = self._contents.get(found.content, {})
        for place in found.chunks:
            del places[found.first + place]
        self._count -= len(found.chunks)
        if not places:
            self._contents.pop(found.content, None)

    def put_back(self, found: Found) -> None:
        """What `take` took a moment ago is free again. Its content counts as left now: somebody comes for it."""
        if not found.chunks:
            return
        places = self._contents.pop(found.content, {})
        places.update((found.first + place, chunk) for place, chunk in found.chunks.items())
        self._contents[found.content] = places
        self._count += len(found.chunks)

    def give_up(self, count: int) -> list[int]:
        """At most `count` chunks, whose content is forgotten."""
        given: list[int] = []
        while self._contents and len(given) < count:
            content, places = next(iter(self._contents.items()))
            given.append(places.pop(max(places)))
            if not places:
                del self._contents[content]
        self._count -= len(given)
        return given
