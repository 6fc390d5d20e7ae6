"""Which layers are shared, and what is refused."""

from __future__ import annotations

import pytest

from coordinator.config import ShardedLinear
from coordinator.errors import ConfigError
from engine_patch.sharded_linear.options import Options, read
from engine_patch.sharded_linear.series import Candidate, Unshareable, chosen, plan
from engine_patch.sharded_linear.window import PREFETCH


def layers(name: str, count: int, form: str = "f", why_not: str = "") -> list[Candidate]:
    return [Candidate(f"model.layers.{n}.self_attn.{name}", form, why_not) for n in range(count)]


def test_layers_are_chosen_by_their_ends_or_by_patterns() -> None:
    assert chosen("model.layers.3.self_attn.o_proj", ["o_proj"])
    assert chosen("model.layers.3.self_attn.o_proj", ["self_attn.o_proj"])
    assert chosen("model.layers.13.self_attn.o_proj", ["layers.1?.*.o_proj"])
    assert not chosen("model.layers.3.self_attn.qo_proj", ["o_proj"])
    assert not chosen("model.layers.3.self_attn.o_proj", ["layers.1?.*.o_proj"])


def test_layers_of_one_name_and_form_are_a_series_in_the_order_of_their_numbers() -> None:
    found = plan([*layers("o_proj", 11), *layers("gate", 2)], ["o_proj"], 2, 1)
    assert [(one.name, len(one.layers)) for one in found] == [("model.layers.*.self_attn.o_proj", 11)]
    assert found[0].layers[10] == "model.layers.10.self_attn.o_proj"


def test_another_form_begins_another_series() -> None:
    found = plan([*layers("a", 3), *layers("b", 4), *layers("c", 2, "g")], ["a", "b", "c"], 2, 1)
    assert [len(one.layers) for one in found] == [3, 4, 2]
    assert [one.window.first for one in found] == [0, 1, 1]


@pytest.mark.parametrize(
    ("candidates", "group", "words"),
    [
        (layers("o_proj", 3), 1, "one rank"),
        (layers("q_proj", 3), 2, "no linear layer of this model is called 'o_proj'"),
        (layers("o_proj", 3, why_not="it is tied: so"), 2, r"layers\.0\.self_attn\.o_proj: it is tied: so"),
        (layers("o_proj", 1), 2, "the only one of its form"),
        ([Candidate("model.o_proj", "f")], 2, "no layer number"),
    ],
)
def test_what_cannot_be_shared_is_refused_by_name(candidates: list[Candidate], group: int, words: str) -> None:
    with pytest.raises(Unshareable, match=words):
        plan(candidates, ["o_proj"], group, 1)


def test_options_are_a_list_of_layers_or_all_of_them() -> None:
    assert read({}) is None
    assert read({"sharded_linear": None, "other": 1}) is None
    assert read({"sharded_linear": ["o_proj"]}) == Options(("o_proj",))
    assert read({"layer_sharding": ["o_proj", "q_b_proj"]}) == Options(("o_proj", "q_b_proj"))
    given = {"layers": ["a"], "prefetch": 2, "carrier": "broadcast", "deadline_s": 5}
    assert read({"sharded_linear": given}) == Options(("a",), 2, "broadcast", 5.0)


def test_vnpu_yaml_asks_for_as_many_layers_ahead_as_an_engine_does_by_itself() -> None:
    assert ShardedLinear(["a"]).prefetch == Options(("a",)).prefetch == PREFETCH


@pytest.mark.parametrize(
    "given", [{"layers": []}, {"layers": ["a"], "prefetch": -1}, {"layers": ["a"], "carrier": "pigeon"}, {"l": 1}, 3]
)
def test_options_that_cannot_be_used_are_named(given: object) -> None:
    with pytest.raises(ConfigError, match=r"--additional-config: sharded_linear: .*its keys are layers, prefetch"):
        read({"sharded_linear": given})
