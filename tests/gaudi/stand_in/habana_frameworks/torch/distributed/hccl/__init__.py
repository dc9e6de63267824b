"""Registers the backend "hccl", here over gloo; which rank this is and which card is its own it reads at the import."""

from __future__ import annotations

import os
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


def _create(options: Any, more: Any) -> Any:
    return torch.distributed.ProcessGroupGloo(
        options.store, options.group_rank, options.group_size, timeout=options.timeout
    )


torch.distributed.Backend.register_backend("hccl", _create, devices=["hpu"], extended_api=True)
