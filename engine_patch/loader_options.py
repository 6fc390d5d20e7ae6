"""`--model-loader-extra-config` of `--load-format vnpu_netloader`: upstream's keys, and ours.

Upstream (vllm-ascend's Netloader) takes what it cannot use for the default without a word; here it is refused by name.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from coordinator.errors import ConfigError
from transfer.transports.dial import split_address

log = logging.getLogger("vllm.vnpu.netloader")

FORMAT = "vnpu_netloader"
"""As coordinator/engine_args.py has it, which is not imported from here."""
INT8 = ("INT8_CACHE", "INT8_CACHE_NAME")

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]


class RankSources(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whom one rank asks, as `host:port`."""

    device_id: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    sources: Annotated[tuple[str, ...], msgspec.Meta(max_length=1024)]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="upper"):
    """`source`: whom to ask; none: whoever etcd shows. `model`: a name for the weights that takes the place of the
    checkpoint's own revision. `listen_port`: of rank 0, the others follow; 0: a free one. `output_prefix`: each rank
    writes its address into `<prefix><rank>.txt`. `config_file`: a file with these keys, which then holds alone.

    Ours: `load_from`: auto (a peer, else disk), peers (never disk), disk. `limit_s`: from the beginning of loading
    until disk is taken.
    `transport`: auto (memory that is mapped, where the source is on this node; else TCP), tcp, or torch
    (torch.distributed, point to point).
    `rate_limit`: bytes a second that are served while requests run here; 0: no limit.
    `listen_host`: the address that others reach; empty: the one from which etcd is reached.
    """

    source: tuple[RankSources, ...] = ()
    model: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    listen_port: Port = 0
    output_prefix: str = ""
    config_file: str = ""
    load_from: Literal["auto", "peers", "disk"] = "auto"
    limit_s: Seconds = 600.0
    transport: Literal["auto", "tcp", "torch"] = "auto"
    rate_limit: Annotated[float, msgspec.Meta(ge=0, le=1e12)] = 0.6e9
    listen_host: str = ""

    def sources(self, rank: int) -> tuple[tuple[str, int], ...]:
        """Host and port of those that `rank` asks."""
        return tuple(split_address(one) for each in self.source if each.device_id == rank for one in each.sources)


def read(extra: object) -> Options:
    """The options in vLLM's `model_loader_extra_config`.

    Raises:
        ConfigError: a key is unknown, refused or has a value that cannot be used; the message names it.
    """
    if not isinstance(extra, Mapping):
        raise ConfigError(f"--model-loader-extra-config is {type(extra).__name__}", remedy="give a JSON object")
    name = extra.get("CONFIG_FILE")
    if name:
        extra = _from_file(Path(str(name)))
    for key in INT8:
        if extra.get(key) not in (None, "", "no", []):
            raise ConfigError(
                f"{key} is not supported: weights are streamed as the kernels use them, so no second copy of the raw "
                "int8 parameters is kept",
                remedy=f"leave {key} out",
            )
    try:
        options = msgspec.convert({k: v for k, v in extra.items() if k not in INT8}, Options)
        for each in options.source:
            options.sources(each.device_id)
    except (msgspec.ValidationError, ValueError) as error:
        known = ", ".join(field.encode_name for field in msgspec.structs.fields(Options))
        raise ConfigError(f"--model-loader-extra-config: {error}", remedy=f"its keys are {known}") from error
    return options


def _from_file(file: Path) -> Mapping[str, object]:
    """CONFIG_FILE wins over what stands beside it, as upstream's does."""
    try:
        found: dict[str, object] = msgspec.json.decode(file.read_bytes(), type=dict[str, object])
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"CONFIG_FILE={file}: {error}", remedy="give a file with one JSON object") from error
    return found


def write_address(file: Path, host: str, port: int) -> None:
    """OUTPUT_PREFIX: `host:port` in one line. A disk that is full is told, and ends nothing."""
    text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        file.write_text(text)
    except OSError as error:
        log.warning("OUTPUT_PREFIX: %s was not written: %s", file, error)
        file.unlink(missing_ok=True)
