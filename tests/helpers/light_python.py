"""The Python of a node whose engines are light: engine commands become `light_engine.py`, all else is as it is.

`light_engine.py` takes its settings from the environment that the supervisor gives an engine anyway, and the port and
the model's folder from the command line. `LIGHT_SIZE` is the bytes of each engine's weights."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def option(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def main() -> None:
    words = sys.argv[1:]
    if words[:2] == ["-m", "vllm.entrypoints.openai.api_server"]:
        size = int(os.environ.get("LIGHT_SIZE", str(6 << 20)))
        light = {"port": int(option("--port")), "model": option("--served-model-name"), "size": size}
        light |= {"content": os.environ.get("VNPU_ENGINE_ID", ""), "hold": [], "fault": "", "join": 60.0}
        os.environ["LIGHT_ENGINE"] = json.dumps(light)
        os.environ["VNPU_LEASE_TTL"] = "30"  # longer than a machine is away from an engine that is well
        words = [str(HERE / "light_engine.py")]
    os.execv(sys.executable, [sys.executable, *words])


if __name__ == "__main__":
    main()
