"""docs/configuration.md and vnpu.example.yaml say what the structs say."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
import yaml

from coordinator import config
from coordinator.document import Document
from tests.helpers.model_folder import model_folder

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "configuration.md").read_text()


def keys_under(heading: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)` \|", _body(heading), re.MULTILINE)


def defaults_under(heading: str) -> list[tuple[str, str]]:
    """(key, default) of each row that has one; the default is whatever stands there."""
    return re.findall(r"^\| `([^`]+)` \| ([^|]*) \| ", _body(heading), re.MULTILINE)


def _body(heading: str) -> str:
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    [body] = [part for part in section if part.startswith(heading + "\n")]
    return body


@pytest.mark.parametrize(
    ("heading", "keys"),
    [
        ("Top level", config.Config.__struct_fields__),
        ("Device", config.Device.__struct_fields__),
        ("Gateway", config.Gateway.__struct_fields__),
        ("Admin", config.Admin.__struct_fields__),
        ("Defaults", config.Defaults.__struct_fields__),
        ("Model", set(config.Model.__struct_fields__) - set(config.Defaults.__struct_fields__)),
        ("Policy", config.Policy.__struct_fields__),
        ("Log", config.Log.__struct_fields__),
    ],
)
def test_every_key_is_documented_and_no_other(heading, keys):
    assert sorted(keys_under(heading)) == sorted(keys)


@pytest.mark.parametrize(
    ("heading", "struct"),
    [
        ("Top level", config.Config),
        ("Device", config.Device),
        ("Gateway", config.Gateway),
        ("Admin", config.Admin),
        ("Defaults", config.Defaults),
        ("Model", config.Model),
        ("Policy", config.Policy),
        ("Log", config.Log),
    ],
)
def test_every_default_is_the_code_s(heading: str, struct: type[msgspec.Struct]) -> None:
    """`5m` is decoded as the file's would be; words without backticks stand for nothing, `required` for itself."""
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    for key, default in defaults_under(heading):
        field = fields[key]
        if field.required:
            assert default == "required", key
            continue
        real = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        if default.startswith("`"):
            document = Document("page", {key: yaml.safe_load(default.strip("`"))})
            assert getattr(document.decode(msgspec.defstruct("One", [(key, field.type)]), config.hook), key) == real, (
                key
            )
        else:
            assert default != "required", key
            assert not real, key


def test_every_key_that_is_not_supported_yet_is_listed():
    prefix = {"": "", "models": "models.*."}
    later = [f"{prefix.get(section, section + '.')}{key}" for section, keys in config.LATER.items() for key in keys]
    assert sorted(keys_under("Not supported yet")) == sorted(later)


def test_the_example_decodes_and_shows_every_key(tmp_path):
    text = (ROOT / "vnpu.example.yaml").read_text()
    for name in ("qwen-a", "qwen-b"):
        model_folder(tmp_path / "models" / name)
    shown = re.sub(r"^( *)# (\w+: )", r"\1\2", text, flags=re.MULTILINE)  # commented-out keys too
    (tmp_path / "vnpu.yaml").write_text(text)
    config.load(tmp_path / "vnpu.yaml", {})
    (tmp_path / "vnpu.yaml").write_text(shown)
    got = config.load(tmp_path / "vnpu.yaml", {"VNPU_ADMIN_KEY": "k"})
    assert (got.host_ram, got.models["qwen-a"].port, got.admin.api_key) == (8 << 30, 9001, "k")
    structs = (config.Config, config.Device, config.Gateway, config.Admin, config.Model, config.Policy, config.Log)
    keys = {key for struct in structs for key in struct.__struct_fields__}
    assert [key for key in sorted(keys) if not re.search(rf"\b{key}:", shown)] == []


def test_the_example_gives_the_defaults_where_it_says_so(tmp_path):
    model_folder(tmp_path / "models" / "qwen-a")
    model_folder(tmp_path / "models" / "qwen-b")
    (tmp_path / "vnpu.yaml").write_text((ROOT / "vnpu.example.yaml").read_text())
    got = config.load(tmp_path / "vnpu.yaml", {})
    assert (got.gateway, got.admin, got.defaults, got.policy, got.log) == (
        config.Gateway(),
        config.Admin(),
        config.Defaults(),
        config.Policy(),
        config.Log(),
    )
    assert got.models["qwen-b"].keep_alive is None
