"""Registers the backend "hccl", here over gloo; which rank this is and which card is its own it reads at the import."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch.distributed

ENVIRONMENT = dict(os.environ)
"""As it was at the import."""

RANK, WORLD_SIZE, LOCAL_RANK = (
    int(ENVIRONMENT.get(name, default)) for name, default in (("RANK", -1), ("WORLD_SIZE", 1), ("LOCAL_RANK", -1))
)

if "HLS_MODULE_ID" not in os.environ and LOCAL_RANK != -1 and WORLD_SIZE > 1:
    modules = os.environ.get("HABANA_VISIBLE_MODULES", "").split(",")
    os.environ["HLS_MODULE_ID"] = modules[LOCAL_RANK] if modules != [""] else str(LOCAL_RANK)

if "GAUDI_STAND_IN_LOG" in os.environ:  # of a test that wants to know what each rank was told
    names = ("HLS_MODULE_ID", "LOCAL_RANK", "WORLD_SIZE", "PT_HPU_LAZY_MODE", "PT_HPU_ENABLE_LAZY_COLLECTIVES")
    told = {name: os.environ.get(name) for name in names}
    (Path(os.environ["GAUDI_STAND_IN_LOG"]) / f"{RANK}.json").write_text(json.dumps(told))


def _create(options: Any, more: Any) -> Any:
    return torch.distributed.ProcessGroupGloo(
        options.store, options.group_rank, options.group_size, timeout=options.timeout
    )


torch.distributed.Backend.register_backend("hccl", _create, devices=["hpu"], extended_api=True)
