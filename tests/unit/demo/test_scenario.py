"""The demo's prompts never repeat, and its models do not fit together."""

from __future__ import annotations

from pathlib import Path

from coordinator.config import load
from coordinator.demo import scenario
from coordinator.demo.scenario import MODELS, Numbered, all_prompts, configuration, long_prompt


def test_no_prompt_comes_twice() -> None:
    texts = [prompt.text for prompt in all_prompts()]
    assert len(set(texts)) == len(texts) == len(MODELS) * scenario.PROMPTS_EACH


def test_prompts_of_a_model_differ_from_their_first_word() -> None:
    numbered = Numbered()
    firsts = [numbered.take("m").text.split()[0] for _ in range(scenario.PROMPTS_EACH)]
    assert len(set(firsts)) == scenario.PROMPTS_EACH


def test_every_prompt_taken_has_a_reference() -> None:
    known = {prompt.text for prompt in all_prompts()}
    numbered = Numbered()
    for model in MODELS:
        assert all(numbered.take(model.name).text in known for _ in range(scenario.LONG_NUMBER))
        assert long_prompt(model.name).text in known


def test_the_configuration_is_one_that_vnpu_takes(tmp_path: Path) -> None:
    """Written as YAML's subset JSON; only the model folders are missing here."""
    import msgspec

    for model in MODELS:
        folder = tmp_path / model.name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"\0" * 1024)
    file = tmp_path / "vnpu.yaml"
    file.write_bytes(msgspec.json.encode(configuration(tmp_path)))
    assert set(load(file, {}).models) == {model.name for model in MODELS}
