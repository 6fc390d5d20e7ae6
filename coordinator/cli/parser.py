"""The words of the `vnpu` command line and what each `--help` teaches."""

from __future__ import annotations

import argparse
from importlib.metadata import PackageNotFoundError, version
from typing import Any

SIZES = ("tiny", "small", "medium", "large")
SHELLS = ("bash", "zsh", "fish")
ARCHITECTURES = ("qwen3", "llama", "qwen2", "mistral", "deepseek")

_ABOUT = """\
Many vLLM engines share one accelerator: idle models leave device memory, and a request brings them back at the speed
of the memory bus.

Start here:
  vnpu demo                        three real engines take turns on a device that holds two
  vnpu up --config vnpu.yaml       a whole node of your own (vnpu.example.yaml is a commented start)
  vnpu-watch                       what is on the devices now, live

Every day:
  vnpu config check && vnpu up -d  the node in the background, once it is up
  vnpu status                      what runs; vnpu logs MODEL -f: what it says
  vnpu down                        everything ends in order
"""
_EXIT = """\
Exit codes: 0 done, 1 failed, 2 wrong use or configuration, 130 interrupted.
"""
_UP = """\
Runs a whole node, in the foreground or (-d) in the background: etcd (embedded, or yours), the node daemon that owns
every device page, the coordinator with the OpenAI gateway and the admin API, and one vLLM engine for each model. When
all is up it prints the URLs and writes DIR/run.json, by which vnpu-watch and the other commands find it. Every process
has its log in DIR/logs.

A crashed process is restarted after an announced back-off (`restart:` of a model); Ctrl-C or SIGTERM ends everything in
order: gateway, engines, daemon, etcd. A second Ctrl-C does not wait for what lingers.

With -d the same runs in the background and this command shows the progress and returns when all is up: 0; 1 where an
engine could not come up (the others serve); the exit code of the node where it ended. DIR/up.log has what it says.
Ctrl-C while it waits ends what has started.
"""
_UP_EXAMPLES = """\
examples:
  vnpu up                                     the node of ./vnpu.yaml
  vnpu up --config prod.yaml --run-dir /run/vnpu
  vnpu up --without qwen-b                    start that engine yourself: vnpu engine qwen-b
  vnpu up -d                                  in the background; stop it: vnpu down

then:
  curl localhost:8080/v1/models
  curl localhost:8080/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{"model": "qwen-a", "messages": [{"role": "user", "content": "hello"}]}'
"""
_DOWN = """\
Ends the node of a run folder in order: gateway, engines, daemon, etcd; returns when nothing of it is left. It does not
matter whether it runs in the background or in another terminal. Where nothing runs there is nothing to do: exit code 0.
"""
_DOWN_EXAMPLES = """\
examples:
  vnpu down                                   the node that runs here
  vnpu down --now                             kill at once what does not end by itself
  vnpu down --run-dir /run/vnpu
"""
_STATUS = """\
Shows what of the node runs: each process with state, pid and URL. Exit code 0 where all of it is up, else 1.
What is on the devices is shown by vnpu-watch.
"""
_STATUS_EXAMPLES = """\
examples:
  vnpu status
  vnpu status --json | jq -r .state           down, starting, up or degraded
  vnpu status >/dev/null || vnpu up -d        for scripts
"""
_LOGS = """\
Shows the log of one process of the node: a model's engine, daemon, coordinator or etcd. Without a name: what the node
itself says (`vnpu up -d` writes it). Works after the node has ended, too.
"""
_LOGS_EXAMPLES = """\
examples:
  vnpu logs qwen-a                            its last 100 lines
  vnpu logs qwen-a -f                         and what comes, until the node ends
  vnpu logs coordinator -n all | grep WARNING
  vnpu logs qwen-a --previous                 of the run before this one
"""
_CONFIG_CHECK = """\
Checks a configuration without starting anything, and names every fault: file, key, remedy. Exit code 0 where it is
sound, else 2.
"""
_CONFIG_EXAMPLES = """\
examples:
  vnpu config check                           ./vnpu.yaml, or $VNPU_CONFIG
  vnpu config check prod.yaml
  vnpu config check --json | jq -r '.faults[].key'
"""
_FETCH = """\
Fetches the models that the configuration names by an id of the Hugging Face hub (`path: org/name`, `org/name@REVISION`)
into the hub's cache; what is there is brought up to date. `vnpu up` begins with those that are not there. $HF_ENDPOINT
names a mirror, $HF_TOKEN gets at what is private, $HF_HOME says where the cache is.
"""
_FETCH_EXAMPLES = """\
examples:
  vnpu fetch                                  before a node is started where there is no network
  HF_ENDPOINT=https://hub.example.com vnpu fetch --config prod.yaml
"""
_COMPLETION = """\
Prints what makes a shell complete the words of vnpu: commands, options, and the names of models and processes.
"""
_COMPLETION_EXAMPLES = """\
examples:
  eval "$(vnpu completion bash)"              in ~/.bashrc
  eval "$(vnpu completion zsh)"               in ~/.zshrc
  vnpu completion fish | source               in config.fish
"""
_DAEMON = """\
Runs the node daemon of the configuration alone, in the foreground: it owns the physical pages of every device and hands
them to the engine that holds the token. `vnpu up` starts it for you; alone it is for a node whose parts are run by
systemd, Compose or Kubernetes.
"""
_DAEMON_EXAMPLES = """\
examples:
  vnpu daemon --config vnpu.yaml --etcd http://etcd:2379
  vnpu daemon --print                         the command it becomes, not run
"""
_COORDINATOR = """\
Runs a coordinator alone, in the foreground: gateway, admin API and, while it leads, every decision. Any number may run;
one leads, the others stand by and serve requests too.
"""
_COORDINATOR_EXAMPLES = """\
examples:
  vnpu coordinator --config vnpu.yaml --etcd http://etcd:2379
  vnpu coordinator --id replica-2 --print     the command it becomes, not run
"""
_ENGINE = """\
Runs the engine of one model: the ordinary vLLM server, with the flags and the environment that make it join the node.
With --print it shows that command instead; pasted into any shell it does the same.
"""
_ENGINE_EXAMPLES = """\
examples:
  vnpu up --without qwen-b &                  a node that waits for somebody else's engine
  vnpu engine qwen-b                          here it is
  vnpu engine --print qwen-b                  the same as one shell command
  vnpu engine --json qwen-b | jq .argv        the same for a program
"""
_KEY = """\
Makes a key for the admin API and prints it with its hash. The hash goes into the configuration (`admin.roles`, or
`admin.api_key`), the key to whoever is to use it: it is not kept anywhere, and the hash does not give it back.
"""
_KEY_EXAMPLES = """\
examples:
  vnpu key                                    a new key and its hash
  printf %s "$KEY" | vnpu key --hash          the hash of a key that you have
"""
_MAKE_MODEL = """\
Makes a model folder offline: random weights, a byte-level BPE tokenizer trained on this Python's own sources, a chat
template. What it says is nonsense, but it is a real model for vLLM and answers the same at every start. A folder that
was made with the same parameters is left as it is.

sizes (bfloat16 weights): tiny 5 MB, small 170 MB, medium 550 MB, large 1 GB
"""
_MAKE_MODEL_EXAMPLES = """\
examples:
  vnpu make-model models/qwen-a --size medium
  vnpu make-model models/llama-b --size tiny --arch llama --seed 7
"""
_DEMO = """\
Makes three models, starts a node whose device holds at most two of them, sends requests that force switches, kills one
engine, and shows that every answer is identical to stock vLLM's. Ends with a table and DIR/report.json.
"""
_DEMO_EXAMPLES = """\
examples:
  vnpu demo
  vnpu demo --json > report.json
"""
_DOCTOR = """\
Checks what this machine has and what vNPU needs, and says how to get what is missing.
"""
_DOCTOR_EXAMPLES = """\
examples:
  vnpu doctor
  vnpu doctor --engine                        also load vLLM and generate one token (a minute)
  vnpu doctor --json
"""
_SIMULATE = """\
Replays a trace of requests in virtual time: the real scheduler, a fleet that never fails, one run a policy. Ends with a
table: restore time that requests waited for, its ratio to the offline optimum (exact for up to 8 models, else a proven
lower bound), time to first token when the model was there and when it was not, swaps, bytes, longest wait.

A trace is JSON lines {"t": seconds, "model": name, "prompt_tokens": n, "output_tokens": n}, or one of the generators
tail, bursts, diurnal, timers, chains with a seed. docs/scheduling.md has the formats of traces and fleets.
"""
_SIMULATE_EXAMPLES = """\
examples:
  vnpu simulate --trace chains:7
  vnpu simulate --trace bursts:1 --policy lru,cost_aware,cost_aware+predict --plot bursts.svg
  vnpu simulate --trace monday.jsonl --fleet fleet.yaml --json
"""


def build() -> argparse.ArgumentParser:
    """The whole command line; the command's name is in `command`."""
    parser = argparse.ArgumentParser("vnpu", **_texts(_ABOUT, _EXIT))
    parser.add_argument("--version", action="version", version=f"vnpu {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, about: str, description: str, examples: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=about, **_texts(description, examples))

    _up(command("up", "run a whole node", _UP, _UP_EXAMPLES))
    _down(command("down", "end the running node", _DOWN, _DOWN_EXAMPLES))
    _status(command("status", "what of the node runs", _STATUS, _STATUS_EXAMPLES))
    _logs(command("logs", "what a process of the node says", _LOGS, _LOGS_EXAMPLES))
    _config_check(command("config", "check a configuration", _CONFIG_CHECK, _CONFIG_EXAMPLES))
    _config(command("fetch", "fetch models of the hub", _FETCH, _FETCH_EXAMPLES))
    _completion(command("completion", "for bash, zsh or fish", _COMPLETION, _COMPLETION_EXAMPLES))
    _daemon(command("daemon", "run a node daemon alone", _DAEMON, _DAEMON_EXAMPLES))
    _coordinator(command("coordinator", "run a coordinator alone", _COORDINATOR, _COORDINATOR_EXAMPLES))
    _engine(command("engine", "run, or show, one model's vLLM command", _ENGINE, _ENGINE_EXAMPLES))
    _key(command("key", "make a key for the admin API", _KEY, _KEY_EXAMPLES))
    _make_model(command("make-model", "make a small model offline", _MAKE_MODEL, _MAKE_MODEL_EXAMPLES))
    _demo(command("demo", "watch three engines share a device", _DEMO, _DEMO_EXAMPLES))
    _doctor(command("doctor", "check this machine", _DOCTOR, _DOCTOR_EXAMPLES))
    _simulate(command("simulate", "replay a trace under several policies", _SIMULATE, _SIMULATE_EXAMPLES))
    return parser


def _up(parser: argparse.ArgumentParser) -> None:
    _config(parser)
    _run_dir(parser)
    parser.add_argument(
        "--without",
        metavar="MODEL",
        action="append",
        default=[],
        help="do not start this model's engine: it is started by hand (may be given several times)",
    )
    parser.add_argument("-d", "--detach", action="store_true", help="in the background; returns when the node is up")
    _timeout(parser, "15m", "with -d: how long to wait until it is up; it goes on after that")
    _watch_config(parser)


def _timeout(parser: argparse.ArgumentParser, default: str, about: str) -> None:
    parser.add_argument("--timeout", metavar="DURATION", default=default, help=f"{about} (default: {default})")


def _down(parser: argparse.ArgumentParser) -> None:
    _run_dir(parser)
    parser.add_argument("--now", action="store_true", help="kill at once what does not end by itself")
    _timeout(parser, "2m", "after this what lingers is killed")


def _status(parser: argparse.ArgumentParser) -> None:
    _run_dir(parser)
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def _logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="MODEL|PROCESS", nargs="?", default="", help="default: the node itself")
    _run_dir(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until the node ends")
    parser.add_argument(
        "-n", "--lines", metavar="N", type=_lines, default=100, help="how many of the last lines, or all (default: 100)"
    )
    parser.add_argument("--previous", action="store_true", help="of the run before this one")
    parser.add_argument("--list", action="store_true", help="print the names that there are")


def _lines(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor all")
    return int(text)


def _config_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("check",), metavar="check", help="name every fault")
    parser.add_argument("file", metavar="FILE", nargs="?", help="default: --config")
    _config(parser)
    parser.add_argument("--json", action="store_true", help="print the faults as JSON")


def _completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="whose words to print")


def _watch_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--watch-config",
        action="store_true",
        help="read the configuration again whenever the file changes; what cannot change live is named in the log",
    )


def _key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hash", action="store_true", help="read a key from standard input and print its hash only")
    parser.add_argument("--json", action="store_true", help="print both as JSON")


def _daemon(parser: argparse.ArgumentParser) -> None:
    _config(parser)
    _run_dir(parser)
    _etcd(parser)
    _print(parser)


def _coordinator(parser: argparse.ArgumentParser) -> None:
    _config(parser)
    _run_dir(parser)
    _etcd(parser)
    _watch_config(parser)
    parser.add_argument("--id", help="this coordinator's name in etcd (default: <node>-<pid>)")
    _print(parser)


def _engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model of the configuration; MODEL@DEVICE with `device: any`")
    _config(parser)
    _run_dir(parser)
    _etcd(parser)
    parser.add_argument(
        "--port", type=int, help="the engine's own port on 127.0.0.1 (default: `port:`, else a free one)"
    )
    parser.add_argument("--cores", help="cores to compute on, as vLLM writes them: 0, 2-5, 0|1 for two ranks")
    _print(parser)


def _make_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="the folder to make")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="default: tiny")
    parser.add_argument("--arch", choices=ARCHITECTURES, default="qwen3", help="default: qwen3")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another model (default: 0)")
    parser.add_argument("--json", action="store_true", help="say what was made as JSON")


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", default=".vnpu/demo", help="where models and the report go (default: .vnpu/demo)")
    parser.add_argument("--json", action="store_true", help="print the report on standard output")


def _doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", action="store_true", help="also load vLLM and generate one token")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def _simulate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trace", metavar="FILE|GENERATOR[:SEED]", required=True, help="what is asked, and when")
    parser.add_argument(
        "--policy",
        metavar="A,B",
        default="",
        help="default: all there are; NAME+predict: with predictive wake",
    )
    parser.add_argument("--fleet", metavar="FILE", help="devices and models (default: made by the generator)")
    parser.add_argument("--requests", type=int, default=200, help="how many a generator makes (default: 200)")
    parser.add_argument("--models", type=int, default=8, help="how many a generator makes (default: 8)")
    parser.add_argument("--write-trace", metavar="FILE", help="keep the generated trace")
    parser.add_argument("--plot", metavar="FILE", help="draw the comparison as SVG (FILE.svg)")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="the configuration (default: $VNPU_CONFIG, else ./vnpu.yaml)")


def _run_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run-dir", metavar="DIR", default=".vnpu", help="the running node's folder (default: .vnpu)")


def _etcd(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--etcd",
        metavar="URL[,URL]",
        help="etcd's endpoints (default: $VNPU_ETCD_ENDPOINTS, the configuration's, or those of the running node)",
    )


def _print(parser: argparse.ArgumentParser) -> None:
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--print", dest="show", action="store_true", help="show the command instead of running it")
    either.add_argument("--json", action="store_true", help="show it as JSON: argv and env")


def _texts(description: str, epilog: str) -> dict[str, Any]:
    return {"description": description, "epilog": epilog, "formatter_class": argparse.RawDescriptionHelpFormatter}


def _version() -> str:
    try:
        return version("vnpu")
    except PackageNotFoundError:
        return "(not installed)"
