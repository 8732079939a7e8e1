"""Which engines a node opens, by its settings."""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from mycelia.node.engine.engine import Engine
from mycelia.node.engine.models import is_fake, model_name, resolve_model
from mycelia.node.engine.pool.pool import EnginePool, PoolModel, open_pool
from mycelia.node.engine.process import open_engine
from mycelia.node.engine.settings import EngineSettings, sequences_for
from mycelia.node.settings import NodeSettings, WantedModel
from mycelia.node.storage.data_dir import prepare_data_dir
from mycelia.node.telemetry.crashes import REPORTS
from mycelia.proto.cache.tier import GIB
from mycelia.proto.wire.errors import LocalError

log = structlog.get_logger()

NICENESS = 10
"""The engine gives way to the programs that the user of the machine waits for. Alone it is as fast as without."""

OpenEngine = Callable[[], AbstractAsyncContextManager[Engine | EnginePool]]


def engines_of(settings: NodeSettings) -> OpenEngine:
    """Opens one engine, which is always loaded, or a pool of them. Raises LocalError for a model that is not there."""
    wanted = (WantedModel(settings.model, settings.on_demand), *settings.others)
    models = [PoolModel(engine_settings_of(settings, one), not one.on_demand) for one in wanted]
    names = Counter(model.name for model in models)
    if twice := [name for name, count in names.items() if count > 1]:
        raise LocalError(f"two models are called {twice[0]}: serve one of them, or rename its file")
    if len(models) == 1 and models[0].stays and not settings.auto:
        log.info("loading_model", model=str(models[0].settings.model_path))
        return lambda: open_engine(models[0].settings)
    return lambda: open_pool(models, prepare_data_dir(settings.data_dir), _memory_bytes(settings))


def _memory_bytes(settings: NodeSettings) -> int | None:
    return None if settings.memory_gib is None else int(settings.memory_gib * GIB)


def engine_settings_of(settings: NodeSettings, wanted: WantedModel) -> EngineSettings:
    """Sizes that the user left open keep the engine's defaults. Raises LocalError for impossible ones."""
    given: dict[str, Any] = {
        "threads": settings.threads,
        "cells": settings.cells,
        "slots": settings.slots,
        "sequences": None if settings.slots is None else sequences_for(settings.slots),
        "gpu_layers": settings.gpu_layers,
        "tensor_split": settings.tensor_split,
        "main_gpu": settings.main_gpu,
        "ram_tier_mib": settings.ram_tier_mib,
        "cache_dir": settings.cache_dir,
        "disk_tier_gib": settings.disk_tier_gib,
        "check_idle": settings.debug,
        "share": settings.share,
        "room_bytes": _memory_bytes(settings),
        "gpu_memory_bytes": settings.gpu_memory_bytes,
        "niceness": NICENESS,
        "reports_dir": settings.data_dir / REPORTS if settings.keeps_log else None,
        "exact": settings.exact,
        "fake": is_fake(wanted.name),
        "lora_path": wanted.lora_path,
    }
    model_path = Path(wanted.name) if is_fake(wanted.name) else resolve_model(wanted.name)
    defaults = EngineSettings(model_path=model_path, model_name=wanted.called or model_name(wanted.name))
    return replace(defaults, **{name: value for name, value in given.items() if value is not None})
