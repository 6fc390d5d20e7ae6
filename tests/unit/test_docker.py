"""The images' and Compose files' promises, read from the files: what is copied exists, who may do what."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
OURS = ("coordinator", "daemon", "engine-a", "engine-b")
OBSERVERS = ("prometheus", "grafana")
INSTRUCTIONS = {"FROM", "RUN", "COPY", "ENV", "ARG", "USER", "WORKDIR", "EXPOSE", "ENTRYPOINT", "CMD"}


def _instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, rest) of every logical line."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def _compose(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / name).read_text())
    return loaded


def _reaches_the_builder(path: str) -> bool:
    """Whether `.dockerignore` lets `path` through; the last rule that fits decides."""
    allowed = True
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = rule.removeprefix("!").strip()
        if pattern and not rule.startswith("#") and (fnmatch.fnmatch(path, pattern) or path.startswith(pattern + "/")):
            allowed = rule.startswith("!")
    return allowed


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfile_is_well_formed(dockerfile: Path) -> None:
    instructions = _instructions(dockerfile)

    assert {word for word, _ in instructions} <= INSTRUCTIONS
    assert next(word for word, _ in instructions if word != "ARG") == "FROM"
    assert instructions[-1][0] == "CMD"


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_exists_and_reaches_the_builder(dockerfile: Path) -> None:
    for word, rest in _instructions(dockerfile):
        if word != "COPY" or "--from=" in rest:
            continue
        for source in rest.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert _reaches_the_builder(source), source


@pytest.mark.parametrize("name", ["coordinator", "engine-cpu", "engine-ascend", "engine-cuda"])
def test_our_images_do_not_run_as_root(name: str) -> None:
    words = _instructions(DOCKER / f"{name}.Dockerfile")

    assert [rest for word, rest in words if word == "USER"][-1] == "vnpu"


@pytest.mark.parametrize("name", [*OURS, *OBSERVERS])
def test_our_containers_have_no_privilege(name: str) -> None:
    service = _compose("compose.yaml")["services"][name]

    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not {"cap_add", "privileged", "ipc", "user"} & set(service)


def test_only_the_daemon_sees_the_hosts_processes() -> None:
    services = _compose("compose.yaml")["services"]

    assert [name for name in services if services[name].get("pid")] == ["daemon"]


def test_only_the_coordinator_and_who_observes_it_are_reached_from_outside_and_on_loopback() -> None:
    services = _compose("compose.yaml")["services"]
    open_ = [name for name in services if "ports" in services[name]]

    assert open_ == ["coordinator", *OBSERVERS]
    assert all(port.startswith("127.0.0.1:") for name in open_ for port in services[name]["ports"])


def test_who_observes_is_there_only_when_asked_for_and_sees_neither_etcd_nor_engines() -> None:
    services = _compose("compose.yaml")["services"]

    for name in OBSERVERS:
        assert services[name]["profiles"] == ["observability"]
        assert services[name]["networks"] == ["edge"]
    assert [name for name in services if "profiles" in services[name]] == list(OBSERVERS)


def test_every_service_that_stays_has_a_health_check_and_declared_volumes() -> None:
    compose = _compose("compose.yaml")

    for name, service in compose["services"].items():
        assert "healthcheck" in service, name
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or source.startswith((".", "${")), f"{name}: {volume}"


def test_overlays_lie_over_services_that_exist() -> None:
    base = _compose("compose.yaml")["services"]

    assert set(_compose("compose.test.yaml")["services"]) - set(base) == {"models"}
    for driver in ("ascend", "cuda"):
        assert set(_compose(f"compose.{driver}.yaml")["services"]) <= set(base)


@pytest.mark.parametrize("driver", ["ascend", "cuda"])
def test_an_overlay_for_a_device_says_its_driver_to_all_that_ask(driver: str) -> None:
    """And gives no privilege that the plain containers have not."""
    services = _compose(f"compose.{driver}.yaml")["services"]

    for name in ("coordinator", "engine-a", "engine-b"):
        assert services[name]["environment"]["VNPU_DRIVER"] == driver
    command = services["daemon"]["command"]
    base = _compose("compose.yaml")["services"]["daemon"]["command"]
    own = ("--device", "--pages")
    assert next(word for word in command if word.startswith("--device=")).startswith(f"--device=0:{driver}:")
    assert {word for word in command if not word.startswith(own)} >= {
        word for word in base if word.startswith("--") and not word.startswith(own)
    }
    for service in services.values():
        assert not {"cap_add", "privileged", "user", "pid", "security_opt"} & set(service)
        if "image" in service:
            assert (ROOT / service["build"]["dockerfile"]).exists()


def test_engines_are_reached_by_the_hosts_that_the_coordinator_allows() -> None:
    services = _compose("compose.yaml")["services"]
    allowed = services["coordinator"]["environment"]["VNPU_ENGINE_HOSTS"].split(",")

    for name in ("engine-a", "engine-b"):
        assert services[name]["environment"]["VNPU_URL"] == f"http://{name}:8000"
        assert name in allowed
