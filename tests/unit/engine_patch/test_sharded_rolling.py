"""The rolling window at work: ranks as threads of one process, modules of torch, a carrier that copies when all have
come. (Real ranks with gloo and vLLM's own classes: tests/engine/test_sharded_ranks.py.)"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine_patch.sharded_linear import image
from engine_patch.sharded_linear.group import OutOfStep
from engine_patch.sharded_linear.rolling import Rolling
from engine_patch.sharded_linear.series import Candidate, Series, Unshareable, plan
from engine_patch.sharded_linear.window import Window

PATIENCE_S = 30.0


class Scaled(torch.nn.Module):
    """As a quantised layer: int8 weights, laid out across as kernels want them, and a scale for each row."""

    def __init__(self, number: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(number)
        kept = torch.randint(-90, 90, (6, 10), dtype=torch.int8, generator=draw)
        self.weight = torch.nn.Parameter(kept.t().contiguous().t(), requires_grad=False)
        self.scale = torch.rand(6, generator=draw)
        self.bias = torch.nn.Parameter(torch.rand(6, generator=draw))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.weight.stride() == (1, 6)
        return x @ (self.weight.float() * self.scale[:, None]).t() + self.bias


class Hub:
    """Matches the n-th send of each rank, as gloo does. Copies are made when the last has come; `late`: each one not
    before its rank waits for it, and the owner waits for all of them."""

    def __init__(self, ranks: int, *, late: bool = False) -> None:
        self._ranks = ranks
        self._late = late
        self._sent: dict[tuple[int, int], tuple[torch.Tensor, int]] = {}
        self._moved = threading.Condition()
        self._done: set[tuple[int, int]] = set()

    def end(self, rank: int) -> End:
        return End(self, rank)

    def put(self, rank: int, number: int, place: torch.Tensor, owner: int) -> None:
        with self._moved:
            self._sent[rank, number] = place, owner
            if not self._late and self._all(self._sent, number):
                for each in range(self._ranks):
                    self._copy(each, number)
            self._moved.notify_all()

    def wait(self, rank: int, number: int, timeout_s: float) -> bool:
        with self._moved:
            if rank == self._sent[rank, number][1]:
                self._done.add((rank, number))
                return self._moved.wait_for(lambda: self._all(self._done, number), timeout_s)
            if not self._moved.wait_for(lambda: self._all(self._sent, number), timeout_s):
                return False
            self._copy(rank, number)
            return True

    def _all(self, of: Container[tuple[int, int]], number: int) -> bool:
        return all((rank, number) in of for rank in range(self._ranks))

    def _copy(self, rank: int, number: int) -> None:
        place, owner = self._sent[rank, number]
        if (rank, number) not in self._done:
            place.copy_(self._sent[owner, number][0])
        self._done.add((rank, number))
        self._moved.notify_all()


class End:
    def __init__(self, hub: Hub, rank: int) -> None:
        self._hub, self._rank, self._count = hub, rank, 0

    def send(self, place: torch.Tensor, owner: int) -> Pending:
        self._hub.put(self._rank, self._count, place, owner)
        self._count += 1
        return Pending(self._hub, self._rank, self._count - 1)


class Pending:
    def __init__(self, hub: Hub, rank: int, number: int) -> None:
        self._hub, self._rank, self._number = hub, rank, number

    def wait(self, timeout_s: float) -> bool:
        return self._hub.wait(self._rank, self._number, timeout_s)


class Rank:
    def __init__(self, series: Series, me: int, hub: Hub, deadline_s: float = PATIENCE_S) -> None:
        self.modules = [Scaled(n) for n in range(len(series.layers))]
        self.rolling = Rolling(series, me, hub.end(me), deadline_s)
        for position, module in enumerate(self.modules):
            self.rolling.adopt(position, module)
        self.rolling.open()

    def run(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [module(x) for module in self.modules]


def series(length: int, group: int, prefetch: int) -> Series:
    [one] = plan([Candidate(f"layers.{n}.o_proj", "f") for n in range(length)], ["o_proj"], group, prefetch)
    return one


def together(ranks: list[Rank], work: Callable[[Rank], object]) -> list[object]:
    with ThreadPoolExecutor(len(ranks)) as pool:
        return [each.result(PATIENCE_S) for each in [pool.submit(work, rank) for rank in ranks]]


@pytest.mark.parametrize(("length", "group", "prefetch"), [(5, 2, 1), (4, 2, 0), (7, 3, 2), (2, 4, 1), (3, 2, 9)])
def test_all_ranks_compute_what_one_would_over_passes_and_sleeps(length: int, group: int, prefetch: int) -> None:
    x = torch.rand(3, 10)
    expected = [Scaled(n)(x) for n in range(length)]
    hub = Hub(group)
    ranks = [Rank(series(length, group, prefetch), me, hub) for me in range(group)]
    for _ in range(3):
        together(ranks, lambda rank: rank.rolling.fill())
        for _ in range(2):
            for found in together(ranks, lambda rank: rank.run(x)):
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))  # type: ignore[call-overload]
        together(ranks, lambda rank: rank.rolling.drain())
    for me, rank in enumerate(ranks):
        window = rank.rolling.series.window
        assert rank.rolling.bytes == window.resident(me) * rank.rolling.layer_bytes
        assert all(module.weight.numel() == 0 for module in rank.modules)


@st.composite
def stages(draw: st.DrawFn) -> Series:
    """A series of a pipeline stage that starts anywhere, after other series have taken their share of ranks."""
    length, group, start = draw(st.integers(1, 9)), draw(st.integers(2, 5)), draw(st.integers(0, 90))
    window = Window(length, group, draw(st.integers(0, 10)), draw(st.integers(0, group - 1)))
    return Series("layers.*.o_proj", tuple(f"layers.{start + n}.o_proj" for n in range(length)), window)


SHORTEST = Series("layers.*.o_proj", ("layers.0.o_proj",), Window(1, 2, 0))
"""Its owner sends the same bytes again in the next step."""


@settings(max_examples=60)
@example(SHORTEST, [3], True)
@given(stages(), st.lists(st.integers(0, 3), min_size=1, max_size=4), st.booleans())
def test_any_stage_computes_what_one_rank_would_and_keeps_as_much_as_was_said(
    one: Series, awake: list[int], late: bool
) -> None:
    """`awake`: passes between a wake and a sleep. All ends: no wait is left without its send. And no image changes
    before all have taken it, however late they do."""
    x = torch.rand(1, 10)
    expected = [Scaled(n)(x) for n in range(one.window.length)]
    hub = Hub(one.window.group, late=late)
    ranks = [Rank(one, me, hub) for me in range(one.window.group)]
    for passes in awake:
        together(ranks, lambda rank: rank.rolling.fill())
        for _ in range(passes):
            for found in together(ranks, lambda rank: rank.run(x)):
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))  # type: ignore[call-overload]
        together(ranks, lambda rank: rank.rolling.drain())
        assert not any(rank.rolling._away for rank in ranks)
    for me, rank in enumerate(ranks):
        assert rank.rolling.bytes == one.window.resident(me) * rank.rolling.layer_bytes


def test_what_a_rank_owns_is_the_same_bytes_after_every_drain() -> None:
    """A host master is sealed of it, and filled anew later."""
    hub = Hub(2)
    ranks = [Rank(series(4, 2, 1), me, hub) for me in (0, 1)]
    before = [[home.clone() for home in rank.rolling._homes.values()] for rank in ranks]
    together(ranks, lambda rank: rank.rolling.fill())
    together(ranks, lambda rank: rank.run(torch.rand(1, 10)))
    together(ranks, lambda rank: rank.rolling.drain())
    for rank, homes in zip(ranks, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(rank.rolling._homes.values(), homes, strict=True))


def test_a_layer_out_of_turn_is_named() -> None:
    hub = Hub(1)
    [one] = [Rank(series_of_one(3), 0, hub)]
    one.rolling.fill()
    one.modules[0](torch.rand(1, 10))
    with pytest.raises(OutOfStep, match=r"rank 0 came to layers\.2\.o_proj \(step 1\), layers\.1\.o_proj was next"):
        one.modules[2](torch.rand(1, 10))


def series_of_one(length: int) -> Series:
    """A group of two of which only this rank matters: it owns all it meets."""
    return series(length, 2, 0)


def test_a_rank_that_does_not_come_is_named_with_the_layer() -> None:
    hub = Hub(2)
    ranks = [Rank(series(4, 2, 1), me, hub, deadline_s=0.05) for me in (0, 1)]
    ranks[0].rolling.fill()
    with pytest.raises(OutOfStep, match=r"rank 0 waited 0.05 s at layers\.0\.o_proj \(step 0\) for rank 1 to take it"):
        ranks[0].run(torch.rand(1, 10))
    hub = Hub(2)
    late = [Rank(series(4, 2, 0), me, hub, deadline_s=0.05) for me in (0, 1)]
    with pytest.raises(OutOfStep, match=r"rank 1 waited 0.05 s at layers\.0\.o_proj \(step 0\) for rank 0, its owner"):
        late[1].run(torch.rand(1, 10))


def test_an_owner_computes_while_its_layer_is_still_on_the_way_and_is_never_more_than_a_step_ahead() -> None:
    hub = Hub(2)
    owner, other = (Rank(series(4, 2, 0), me, hub, deadline_s=0.05) for me in (0, 1))
    x = torch.rand(1, 10)
    assert torch.equal(owner.modules[0](x), Scaled(0)(x))
    with pytest.raises(OutOfStep, match="for rank 1 to take it"):
        owner.modules[1](x)
    assert other.rolling._step == 0


def test_a_sleep_waits_until_all_have_taken_what_a_rank_owns() -> None:
    """And as often as it is tried: memory that may still be read must not go."""
    hub = Hub(2)
    owner, other = (Rank(series(4, 2, 0), me, hub, deadline_s=0.05) for me in (0, 1))
    x = torch.rand(1, 10)
    owner.modules[0](x)
    for _ in range(2):
        with pytest.raises(OutOfStep, match=r"at layers\.0\.o_proj \(step 0\) for rank 1 to take it"):
            owner.rolling.drain()
    other.modules[0](x)
    for rank in (owner, other):
        rank.rolling.drain()
        assert not rank.rolling._away
    assert image.stamped(owner.rolling._homes[0]) == (0, 0)


def test_a_rank_that_is_a_whole_pass_ahead_is_found_by_the_step_in_the_image() -> None:
    hub = Hub(2)
    ranks = [Rank(series(4, 2, 0), me, hub) for me in (0, 1)]
    ranks[1].rolling._step = 4
    together(ranks, lambda rank: rank.rolling.fill())

    def first(rank: Rank) -> str:
        try:
            rank.modules[0](torch.rand(1, 10))
        except OutOfStep as error:
            return str(error)
        return ""

    told = together(ranks, first)
    assert told[0] == ""
    assert "rank 1 is at layers.0.o_proj (step 4), rank 0 sent layers.0.o_proj (step 0)" in str(told[1])


def test_layers_that_became_unlike_one_another_are_refused() -> None:
    rolling = Rolling(series(2, 2, 1), 0, Hub(1).end(0), 1.0)
    rolling.adopt(0, Scaled(0))
    other = Scaled(1)
    other.scale = torch.rand(7)
    with pytest.raises(Unshareable, match=r"layers\.1\.o_proj became unlike"):
        rolling.adopt(1, other)


def test_a_weight_that_its_kernel_hides_is_refused() -> None:
    hidden = torch.nn.Module()
    hidden.weight = torch.nn.Parameter(torch.empty(0))
    with pytest.raises(Unshareable, match="its kernel hides the weight"):
        Rolling(series(2, 2, 1), 0, Hub(1).end(0), 1.0).adopt(0, hidden)


def test_an_unprocessed_layer_is_refused() -> None:
    rolling = Rolling(series(2, 2, 1), 0, Hub(1).end(0), 1.0)
    rolling.adopt(0, Scaled(0))
    with pytest.raises(Unshareable, match=r"layers\.1\.o_proj: was not processed"):
        rolling.open()


def test_tensors_with_holes_have_no_image() -> None:
    with pytest.raises(ValueError, match="weight does not lie in one piece"):
        image.layout({"weight": torch.rand(8, 8)[:, :4]})


def test_an_image_keeps_types_strides_and_bytes() -> None:
    tensors = {
        "across": torch.rand(5, 7).t(),
        "half": torch.rand(3, 4, 5).bfloat16().permute(2, 0, 1),
        "one": torch.tensor(3.5),
        "small": torch.tensor([True, False, True]),
    }
    found = image.layout(tensors)
    flat = torch.zeros(found.size, dtype=torch.uint8)
    image.stamp(flat, 2**63 + 5, 77)
    for name, place in image.views(flat, found).items():
        place.copy_(tensors[name])
    assert image.stamped(flat) == (2**63 + 5, 77)
    for name, place in image.views(flat, found).items():
        assert torch.equal(place, tensors[name])
        assert (place.dtype, place.stride()) == (tensors[name].dtype, tensors[name].stride())
