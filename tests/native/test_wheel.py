"""The wheel, as users get it: four flat packages that belong to `vnpu`, with the native module inside."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("coordinator", "engine_patch", "native", "transfer")

LOOK = """
import json, sys
sys.path.insert(0, sys.argv[1])
from importlib.metadata import entry_points, packages_distributions
import native._native as module
import coordinator, engine_patch, native, transfer
print(json.dumps({
    "owners": {name: packages_distributions()[name] for name in ("coordinator", "engine_patch", "native", "transfer")},
    "module": module.__file__,
    "files": [package.__file__ for package in (coordinator, engine_patch, native, transfer)],
    "scripts": [point.name for point in entry_points(group="console_scripts") if point.dist.name == "vnpu"],
    "driver": module.open_driver("host").name,
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # A build folder of its own: the editable install's must not be touched.
    options = ["--no-build-isolation", "--no-deps", "-q", f"-Cbuild-dir={folder / 'build'}", "-w", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True, timeout=600)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.system
@pytest.mark.timeout(900)
def test_the_wheel_owns_its_four_packages_and_works(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True, timeout=300)

    # -S: without the site-packages of this interpreter, where the editable install is.
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", LOOK, str(site)], check=True, capture_output=True, timeout=60, cwd=tmp_path
    )
    seen = json.loads(done.stdout)

    assert seen["owners"] == {name: ["vnpu"] for name in PACKAGES}
    assert all(file.startswith(str(site)) for file in (seen["module"], *seen["files"]))
    assert {"vnpu", "vnpu-watch"} <= set(seen["scripts"])
    assert seen["driver"] == "host"


@pytest.mark.system
@pytest.mark.timeout(900)
def test_the_wheel_holds_the_stub_and_no_sources_of_the_native_module(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == set(PACKAGES)
    assert "native/_native.pyi" in names
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert not [name for name in names if "csrc" in name or name.endswith(("CMakeLists.txt", ".cpp", ".h", ".pyc"))]
