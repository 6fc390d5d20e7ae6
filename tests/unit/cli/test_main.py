"""`vnpu`: what each command says, and its exit codes."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.cli import main as cli
from coordinator.cli import parser
from coordinator.cli.make_model import CLASSES, SHAPES
from coordinator.store.floor import VARIABLE
from coordinator.supervise.layout import RunDir, RunFile
from tests.helpers.model_folder import model_folder

CONFIG = """
devices: [{id: 0, capacity: 1GiB}]
models:
  a: {path: a, kv_cache: 64MiB, port: 9001, engine_args: {enforce_eager: true}}
  b: {path: a, kv_cache: 64MiB}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a configuration, and an environment that names nothing."""
    model_folder(tmp_path / "a")
    (tmp_path / "vnpu.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(("VNPU_", "ETCD_", "VLLM_")):
            monkeypatch.delenv(name)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(words)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("command", [*cli.COMMANDS, ""])
def test_every_help_teaches_by_example(capsys, command):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"] if command else ["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"vnpu {command}".strip() in text.split("usage:")[1]
    assert text.count("vnpu ") > 2
    assert max(map(len, text.splitlines())) <= 120


def test_every_model_that_can_be_made_can_be_asked_for():
    assert set(parser.ARCHITECTURES) == set(CLASSES)
    assert set(parser.SIZES) == set(SHAPES)


def test_the_table_of_commands_and_the_parser_agree():
    [commands] = [action for action in parser.build()._actions if action.dest == "command"]
    assert set(commands.choices) == set(cli.COMMANDS)


@pytest.mark.parametrize("words", [["fly"], ["engine"], ["up", "--fly"], ["make-model", "x", "--size", "huge"]])
def test_wrong_use_ends_with_2(words):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2


def test_the_bare_word_says_what_there_is(capsys):
    assert cli.main([]) == 2
    said = capsys.readouterr().err
    assert "vnpu up --config vnpu.yaml" in said
    assert "simulate" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["up", "--config", "no.yaml"], "no.yaml: cannot be read"),
        (["up", "--without", "c"], "models.c: there is no such model (known: a, b)"),
        (["engine", "c"], "models.c: there is no such model (known: a, b)"),
        (["engine", "a"], "etcd: is embedded, and no node runs here (start `vnpu up` first"),
        (["daemon"], "no node runs here"),
        (["coordinator"], "no node runs here"),
        (["make-model", "."], "was not made by vnpu make-model"),
    ],
)
def test_a_wrong_configuration_ends_with_2_and_one_line(here, capsys, words, said):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_the_configuration_may_be_named_by_the_environment(here, capsys, monkeypatch):
    monkeypatch.setenv("VNPU_CONFIG", "other.yaml")
    assert "other.yaml: cannot be read" in run(capsys, "up")[2]


def test_one_of_several_engines_is_named_by_its_device(here, capsys):
    text = CONFIG.replace("1GiB}", "1GiB}, {id: 1, capacity: 1GiB}").replace(", port: 9001", ", device: any")
    (here / "vnpu.yaml").write_text(text.replace("kv_cache: 64MiB}", "kv_cache: 64MiB, device: 0}"))
    assert "models.a has several engines (name one: a@0, a@1)" in run(capsys, "engine", "a")[2]
    assert "no such model (known: a@0, a@1, b)" in run(capsys, "engine", "a@2")[2]
    code, out, _ = run(capsys, "engine", "--print", "a@1", "--etcd", "http://e:1", "--port", "9001")
    assert code == 0
    assert "VNPU_ENGINE_ID=a@1" in out
    assert "VNPU_DEVICE=1" in out


def test_an_engine_is_shown_as_a_shell_command_that_says_it_all(here, capsys):
    code, out, _ = run(capsys, "engine", "--print", "a", "--etcd", "http://e:1,http://e:2", "--cores", "1")
    assert code == 0
    words = shlex.split(out.replace("\\\n", " "))
    assert words[0] == "env"
    environ = dict(word.split("=", 1) for word in words[1 : words.index(sys.executable)])
    assert environ["VNPU_ETCD_ENDPOINTS"] == "http://e:1,http://e:2"
    assert (environ["VNPU_ENGINE_ID"], environ["VLLM_CPU_OMP_THREADS_BIND"]) == ("a", "1")
    command = words[words.index(sys.executable) :]
    assert command[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert command[command.index("--port") + 1] == "9001"
    assert command[-1] == "--enforce-eager"


@pytest.mark.parametrize(("cores", "said"), [({0, 1}, "0"), ({0, 1, 2}, "auto")])
def test_an_engine_may_step_asynchronously_where_the_two_of_the_node_leave_a_core(
    here, capsys, monkeypatch, cores, said
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores)
    shown = json.loads(run(capsys, "engine", "--json", "a", "--etcd", "http://e:1")[1])
    assert shown["env"]["VNPU_ASYNC_RUNNER"] == said


def test_an_engine_as_json_is_the_same(here, capsys):
    shown = json.loads(run(capsys, "engine", "--json", "b", "--etcd", "http://e:1", "--port", "7")[1])
    assert shown["argv"][0] == sys.executable
    assert "7" in shown["argv"]
    assert shown["env"]["VNPU_ENGINE_ID"] == "b"


def test_endpoints_come_from_the_words_then_the_environment_then_the_file_then_the_running_node(
    here, capsys, monkeypatch
):
    def shown(*words: str) -> str:
        return json.loads(run(capsys, "engine", "--json", "a", *words)[1])["env"]["VNPU_ETCD_ENDPOINTS"]

    def checked() -> str | None:
        return json.loads(run(capsys, "daemon", "--json")[1])["env"].get(VARIABLE)

    folder = RunDir(here / ".vnpu")
    folder.root.mkdir()
    folder.write(
        RunFile(
            pid=os.getpid(), ready=True, node="n", etcd=("http://run:1",), gateway="", admin="", socket="", processes=()
        )
    )
    assert shown() == "http://run:1"
    assert checked() == "development"  # it is that node's own
    (here / "vnpu.yaml").write_text(CONFIG + "etcd: [http://file:1]\n")
    assert shown() == "http://file:1"
    assert checked() is None
    monkeypatch.setenv("ETCD_ENDPOINTS", "http://env:1")
    assert shown() == "http://env:1"
    monkeypatch.setenv("VNPU_ETCD_ENDPOINTS", "http://ours:1")
    assert shown() == "http://ours:1"
    assert shown("--etcd", "http://words:1") == "http://words:1"


def test_daemon_and_coordinator_show_what_they_become(here, capsys):
    daemon = json.loads(run(capsys, "daemon", "--json", "--etcd", "http://e:1")[1])["argv"]
    assert daemon[1:] == [
        *("-m", "native.daemon", "--node", "local", "--etcd", "http://e:1"),
        *("--socket", str(here / ".vnpu" / "daemon.sock"), "--state-dir", str(here / ".vnpu" / "daemon")),
        *("--device", f"0:host:{1 << 30}"),
    ]
    coordinator = json.loads(run(capsys, "coordinator", "--json", "--etcd", "http://e:1", "--id", "c")[1])["argv"]
    assert coordinator[1:] == [
        *("-m", "coordinator", "--config", str(here / "vnpu.yaml"), "--etcd", "http://e:1", "--id", "c"),
    ]
    assert not (here / ".vnpu" / "daemon").exists()


@pytest.mark.parametrize("words", [("daemon",), ("coordinator",), ("engine", "a")], ids=lambda words: words[0])
def test_the_password_of_an_etcd_is_in_no_command_line(here, capsys, words):
    _, out, _ = run(capsys, *words, "--json", "--etcd", "http://u:sesame@h:1")
    command = json.loads(out)
    assert "sesame" not in " ".join(command["argv"])
    assert (command["env"]["VNPU_ETCD_USER"], command["env"]["VNPU_ETCD_PASSWORD"]) == ("u", "sesame")
    assert "http://h:1" in [*command["argv"], command["env"].get("VNPU_ETCD_ENDPOINTS")]


def test_a_folder_that_cannot_be_made_is_one_line(capsys):
    code, _, said = run(capsys, "make-model", "/proc/nowhere/m")
    assert code == 1
    assert said.splitlines() == ["vnpu: /proc/nowhere: No such file or directory"]


def test_a_reader_that_has_enough_is_no_fault():
    command = [sys.executable, "-m", "coordinator.cli.main", "doctor"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 1


def test_a_command_loads_only_what_it_needs():
    script = "import sys, coordinator.cli.main as m; m.parser.build(); print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "vllm", "etcd3", "aiohttp", "rich"):
        assert f"'{heavy}'" not in loaded


@pytest.mark.timeout(600)
def test_made_models_are_the_same_each_time_and_left_alone_when_there(tmp_path):
    def make(name: str, *words: str) -> dict:
        command = [sys.executable, "-m", "coordinator.cli.main", "make-model", str(tmp_path / name), "--json", *words]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    first = make("one")
    assert first["made"]
    assert 3e6 < first["weight_bytes"] < 7e6
    stamp = (tmp_path / "one" / "model.safetensors").stat().st_mtime_ns
    assert not make("one")["made"]
    assert (tmp_path / "one" / "model.safetensors").stat().st_mtime_ns == stamp
    make("two")
    for file in ("model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    make("two", "--seed", "1", "--arch", "llama")
    assert json.loads((tmp_path / "two" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert (tmp_path / "one" / "model.safetensors").read_bytes() != (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
