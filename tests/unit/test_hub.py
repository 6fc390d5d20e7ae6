"""`path:` as an id of the Hugging Face hub: found in the cache, fetched from a stand-in, refused in words."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from coordinator import config, hub
from coordinator.cli import main as cli
from coordinator.config_faults import faults
from coordinator.errors import ConfigError
from coordinator.hub import HubId, hub_id
from tests.helpers.hub import COMMIT, Hub, running_hub
from tests.helpers.model_folder import model_folder

NAME = "org/tiny"
NEWER = "fedcba9876543210fedcba9876543210fedcba98"
FILE = "devices: [{id: 0, capacity: 1GiB}]\nmodels:\n  a: {path: PATH, kv_cache: 64MiB}\n"


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Hub]:
    folder = model_folder(tmp_path / "site" / NAME, weights=1000)
    (folder / "tokenizer.json").write_text("[]")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    (folder / "consolidated.safetensors").write_bytes(b"once more")
    (folder / "modeling.py").write_text("raise SystemExit")
    with running_hub(tmp_path / "site") as found:
        yield found


@pytest.fixture
def here(tmp_path: Path, there: Hub, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, and an environment that names the stand-in and an empty cache."""
    for name in list(os.environ):
        if name.startswith(("VNPU_", "HF_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_ENDPOINT", there.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(here: Path, path: str = NAME) -> Path:
    (here / "vnpu.yaml").write_text(FILE.replace("PATH", path))
    return here / "vnpu.yaml"


def cached(environ: Mapping[str, str], files: tuple[str, ...], commit: str = COMMIT) -> Path:
    """A snapshot in the cache, of these files."""
    repository = hub.cache(environ) / "models--org--tiny"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_bytes(b"{}")
    return folder


@pytest.mark.parametrize(
    ("path", "means"),
    [
        ("Qwen/Qwen3-0.6B", HubId("Qwen/Qwen3-0.6B")),
        ("org/a.b_c@v1.2", HubId("org/a.b_c", "v1.2")),
        ("./models/a", None),
        ("models", None),
        ("/models/a", None),
        ("~/models", None),
        ("a/b/c", None),
        ("../a", None),
        ("org/..", None),
        ("org/a@", None),
        ("org/a@../x", None),
        ("org/a@x/../y", None),
        ("örg/a", None),
    ],
)
def test_what_a_path_may_mean(path: str, means: HubId | None) -> None:
    assert hub_id(path) == means


def test_a_folder_goes_before_an_id(here: Path) -> None:
    model_folder(here / "org" / "tiny")
    assert config.load(written(here), os.environ).models["a"].path == str(here / "org" / "tiny")


def test_a_whole_snapshot_is_used_without_the_network(here: Path, there: Hub) -> None:
    folder = cached(os.environ, ("config.json", "model.safetensors", "tokenizer.json"))
    assert config.load(written(here), os.environ).models["a"].path == str(folder)
    assert config.load(written(here, f"{NAME}@{COMMIT}"), os.environ).models["a"].path == str(folder)
    assert faults(written(here), os.environ) == []
    assert there.asked == []


@pytest.mark.parametrize(
    "files",
    [
        ("config.json", "tokenizer.json"),
        ("model.safetensors", "tokenizer.json"),
        ("config.json", "tokenizer.json", "model-00001-of-00002.safetensors"),
        ("config.json", "model.safetensors"),
    ],
    ids=["no weights", "no configuration", "half the weights", "no tokenizer"],
)
def test_half_a_snapshot_counts_for_nothing(here: Path, files: tuple[str, ...]) -> None:
    cached(os.environ, files)
    with pytest.raises(ConfigError, match=r"models\.a\.path: there is no folder org/tiny, .*vnpu fetch"):
        config.load(written(here), os.environ)


def test_shards_are_all_of_them(here: Path) -> None:
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    cached(os.environ, ("config.json", "tokenizer.json", *shards))
    config.load(written(here), os.environ)


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"HF_HUB_CACHE": "/c"}, "/c"),
        ({"HF_HOME": "/h"}, "/h/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({}, str(Path.home() / ".cache" / "huggingface" / "hub")),
    ],
)
def test_the_cache_is_the_hub_librarys_own(environ: dict[str, str], folder: str) -> None:
    assert str(hub.cache(environ)) == folder


def test_fetching_gets_what_is_wanted_and_no_more(here: Path, there: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(here)
    assert "vnpu fetch" in str(faults(file, os.environ)[0])
    assert cli.main(["fetch"]) == 0
    assert sorted(there.sent) == ["config.json", "model.safetensors", "tokenizer.json"]
    said = " ".join(capsys.readouterr().out.split())
    assert f"models.a: fetching org/tiny from {there.url} into" in said
    assert "models.a: org/tiny is here, 1.0 KiB of weights" in said
    found = Path(config.load(file, os.environ).models["a"].path)
    assert (found / "model.safetensors").read_bytes() == (here / "site" / NAME / "model.safetensors").read_bytes()
    there.sent.clear()
    assert cli.main(["fetch"]) == 0
    assert there.sent == []  # it is as the hub has it


def test_a_fetch_that_is_broken_off_leaves_the_older_snapshot_in_use(here: Path, there: Hub) -> None:
    file, weights = written(here), here / "site" / NAME / "model.safetensors"
    assert cli.main(["fetch"]) == 0
    older = config.load(file, os.environ).models["a"].path
    there.commit, there.broken = NEWER, True
    weights.write_bytes(b"newer")
    (weights.parent / "config.json").write_text('{"newer": 1}')
    assert cli.main(["fetch"]) == 2
    assert "config.json" in there.sent[3:]  # a part of the newer one is here
    assert config.load(file, os.environ).models["a"].path == older
    there.broken = False
    assert cli.main(["fetch"]) == 0
    newer = Path(config.load(file, os.environ).models["a"].path)
    assert newer.name == NEWER
    assert (newer / "model.safetensors").read_bytes() == b"newer"
    assert [ref.name for ref in (newer.parents[1] / "refs").iterdir()] == ["main"]


def test_a_commit_needs_no_ref(here: Path, there: Hub) -> None:
    file = written(here, f"{NAME}@{COMMIT}")
    assert cli.main(["fetch"]) == 0
    folder = Path(config.load(file, os.environ).models["a"].path)
    assert folder.name == COMMIT
    assert not (folder.parents[1] / "refs").exists()


def test_up_begins_with_what_is_not_here(here: Path, there: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    """A second fault keeps it from going on."""
    written(here)
    assert cli.main(["up", "--without", "b"]) == 2
    assert "models.b: there is no such model" in capsys.readouterr().err
    asked = len(there.asked)
    assert "model.safetensors" in there.sent
    assert cli.main(["up", "--without", "b"]) == 2
    assert len(there.asked) == asked


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What it says, in one line, as it ends with 2."""
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    [line] = [line for line in said.splitlines() if line.startswith("vnpu: ")]
    return line


@pytest.mark.parametrize("command", ["fetch", "up"])
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("org/none", ("there is no org/none at http://127.0.0.1:", "mend the id; where it is private set HF_TOKEN")),
        (f"{NAME}@v9", ("org/tiny has no revision v9", "name a branch, a tag or a commit")),
        ("org/gated", ("org/gated is gated", "accept its terms at http://127.0.0.1", "HF_TOKEN")),
        ("org/pickled", ("holds no *.safetensors", "name a model whose weights are safetensors")),
    ],
)
def test_what_cannot_be_fetched_names_the_key_and_the_remedy(
    here: Path, there: Hub, capsys: pytest.CaptureFixture[str], path: str, words: tuple[str, ...], command: str
) -> None:
    model_folder(here / "site" / "org" / "gated")
    (model_folder(here / "site" / "org" / "pickled") / "model.safetensors").unlink()
    there.gated.add("org/gated")
    written(here, path)
    line = refused(capsys, command)
    assert "vnpu.yaml: models.a.path: " in line
    for each in words:
        assert each in line


def test_a_token_opens_what_is_gated(here: Path, there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    there.gated.add(NAME)
    monkeypatch.setenv("HF_TOKEN", "sesame")
    written(here)
    assert cli.main(["fetch"]) == 0


def test_without_a_network_that_is_said(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written(here)
    with socket.socket() as held:  # and not listened on
        held.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{held.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", nobody)
        line = refused(capsys, "fetch")
    assert f"models.a.path: org/tiny cannot be fetched from {nobody}: " in line
    assert "check the network, or name a mirror by HF_ENDPOINT" in line


def test_a_file_without_ids_fetches_nothing(here: Path, there: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    model_folder(here / "m")
    written(here, "./m")
    assert cli.main(["fetch"]) == 0
    assert "names no model by an id of the hub" in " ".join(capsys.readouterr().out.split())
    assert there.asked == []


@pytest.mark.parametrize(
    ("site", "said"),
    [
        ("https://anna:secret@mirror:8443/hub", "https://mirror:8443/hub"),
        ("https://huggingface.co", "https://huggingface.co"),
    ],
)
def test_a_mirrors_password_is_not_shown(site: str, said: str) -> None:
    assert hub.shown(site) == said
