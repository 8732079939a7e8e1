"""Which engines a node opens, by its settings."""

import gc
import os
import random
import secrets
import ssl
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio
from blake3 import blake3

from mycelia.node.app import Node
from mycelia.node.auto.auto import Auto, Part
from mycelia.node.engine.engine import Engine
from mycelia.node.engine.models import is_fake, model_name, resolve_model
from mycelia.node.engine.pool.pool import EnginePool, PoolModel, open_pool
from mycelia.node.engine.process import open_engine
from mycelia.node.engine.settings import EngineSettings, sequences_for
from mycelia.node.engine.shares import EngineShares
from mycelia.node.errors import first_error
from mycelia.node.guest.guest import Guest
from mycelia.node.models.catalogue import one_name
from mycelia.node.network.addresses import parse_listen, with_next_port
from mycelia.node.network.libp2p.network import Libp2pNetwork, open_network
from mycelia.node.network.line import Line
from mycelia.node.network.mapping.mapper import PortMapper, port_mappers
from mycelia.node.network.network import NetworkSettings
from mycelia.node.network.supervise import supervised
from mycelia.node.plugins import OWN_POLICY, policies
from mycelia.node.private_swarm.member import PrivateSwarm
from mycelia.node.queries import reach
from mycelia.node.reload.process_signals import follow_signals
from mycelia.node.reload.reloading import LiveParts, Reloader, keys_with_own
from mycelia.node.requests.drain import Drain
from mycelia.node.serve.api_keys import ApiKey
from mycelia.node.serve.gateway import Access, Gateway
from mycelia.node.serve.http.server import bind_api, bind_other_loopback, serve_http, url_of
from mycelia.node.serve.http.tls import load_tls
from mycelia.node.service.notify import keep_watchdog_calm, notify
from mycelia.node.settings import UNNAMED, NodeSettings, WantedModel
from mycelia.node.storage.data_dir import PUBLIC, prepare_data_dir
from mycelia.node.storage.identity_file import load_or_create_identity
from mycelia.node.storage.layout import open_layout
from mycelia.node.storage.private_swarms import read_swarm, state_dir_of
from mycelia.node.storage.rundir import RunInfo, locked, next_epoch, write_run_info
from mycelia.node.storage.saving import load_kept
from mycelia.node.swarms import Swarms
from mycelia.node.telemetry.crashes import REPORTS, reporting
from mycelia.node.telemetry.days import open_days
from mycelia.node.telemetry.journal import open_request_log
from mycelia.node.telemetry.requests import RequestLog
from mycelia.node.telemetry.usage import UsageMeter, open_usage
from mycelia.node.views.history import DayRow
from mycelia.proto.cache.tier import GIB
from mycelia.proto.routing.choose import Policy
from mycelia.proto.wire.errors import LocalError
from mycelia.node.run import log
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
