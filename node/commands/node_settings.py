"""The settings of a node, from the options of ``mycelia node``: at its start, and again while it runs."""

import os
from collections.abc import Callable
from dataclasses import replace

import click
from click.core import ParameterSource

from mycelia.node.commands.checks import (
    check_announce,
    check_cors,
    check_hosts,
    check_listen,
    check_policy,
    check_tls,
    models_in_swarm,
    read_aliases,
    read_api_keys,
    read_bootstrap,
    read_loras,
    read_models,
    read_swarm_key,
    read_tensor_split,
)
from mycelia.node.commands.fetching import model_here, other_name
from mycelia.node.commands.guest import guest_settings
from mycelia.node.network.addresses import default_listen
from mycelia.node.settings import DEFAULT_API_HOST, DEFAULT_API_PORT, DEFAULT_PORT, NodeSettings, UsageError
from mycelia.node.storage.data_dir import default_data_dir


def settings_of(context: click.Context, find_model: Callable[[str], str] = model_here) -> NodeSettings:
    """The settings that the options in ``context`` mean. find_model: see ``model_here``. Raises LocalError and
    click.UsageError."""
    given = context.params
    swarm, swarm_key = given["swarm"], given["swarm_key"]
    if given["tensor_split"] and given["main_gpu"] is not None:
        raise click.UsageError("give --tensor-split (several GPUs) or --main-gpu (one GPU), not both")
    if swarm and swarm_key is not None:
        raise click.UsageError("give --swarm (a swarm with members) or --swarm-key (a key without), not both")
    asked = read_models(given["models"])
    here = [replace(one, name=find_model(one.name)) for one in asked]
    other_names = [name for one, held in zip(asked, here, strict=True) for name in other_name(one.name, held.name)]
    where = given["data_dir"] or default_data_dir()
    is_default = context.get_parameter_source("models") is ParameterSource.DEFAULT
    host = given["api_host"] or DEFAULT_API_HOST
    key = "" if context.find_root().params["isolated"] else os.environ.get("MYCELIA_API_KEY", "")
    first, *others = models_in_swarm(where, swarm, here, is_default)
    return NodeSettings(
        data_dir=where,
        model=first.name,
        on_demand=first.on_demand or (given["auto"] and is_default),
        auto=given["auto"],
        others=(*others, *read_loras(given["lora"], first)),
        memory_gib=given["memory_gib"],
        listen=check_listen(given["listen"] or default_listen(DEFAULT_PORT)),
        announce=check_announce(given["announce"]),
        bootstrap=read_bootstrap(given["bootstrap"]),
        swarm_key=read_swarm_key(swarm_key),
        swarm=swarm,
        public=given["public"] and bool(swarm or swarm_key),
        api_port=DEFAULT_API_PORT if given["api_port"] is None else given["api_port"],
        api_host=host,
        api_keys=read_api_keys(host, given["api_key_file"], key, given["keys"]),
        cors_origins=check_cors(given["cors"]),
        allowed_hosts=check_hosts(given["allow_host"]),
        tls_cert=check_tls(given["tls_cert"], given["tls_key"]),
        tls_key=given["tls_key"],
        aliases=(*read_aliases(given["alias"]), *other_names),
        threads=given["threads"],
        slots=given["slots"],
        cells=given["cells"],
        gpu_layers=given["gpu_layers"],
        tensor_split=read_tensor_split(given["tensor_split"]),
        main_gpu=given["main_gpu"],
        ram_tier_mib=given["ram_tier"],
        cache_dir=given["cache_dir"],
        disk_tier_gib=given["disk_tier"],
        exact=given["exact"],
        policy=check_policy(given["policy"]),
        drain_s=given["drain_s"],
        relay=given["relay"],
        mdns=given["mdns"],
        port_mapping=not given["no_port_mapping"],
        journal=not given["no_journal"],
        exit_with_parent=given["exit_with_parent"],
        keeps_log=True,
        **guest_settings(given),
        debug=given["debug"],
    )


def settings_again(context: click.Context, settings: NodeSettings) -> NodeSettings:
    """The settings of a node that was started with ``context``, as the configuration is now. Options that were given on
    the command line stay. settings: those of its start; other models than theirs are not fetched. Raises LocalError."""
    from mycelia.node.commands.config_file import Schema

    asked = [model.name for model in read_models(context.params["models"])]
    held = [settings.model, *(model.name for model in settings.others)]
    names = dict(zip(asked, held, strict=False))  # (adapters come after the models)

    def find_model(name: str) -> str:
        return names.get(name, name)

    root = context.find_root()
    values: dict[str, object] = {}
    try:
        if not root.params["isolated"]:
            assert isinstance(root.command, click.Group)
            schema = Schema(root.command)
            values = schema.default_map(schema.read(root.params["config"], os.environ)).get(context.info_name or "", {})
        again = context.command.make_context(context.info_name, [], context.parent, default_map=values)
        for name, value in context.params.items():
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                again.params[name] = value
                again.set_parameter_source(name, ParameterSource.COMMANDLINE)
        with again.scope(cleanup=False):
            return settings_of(again, find_model)
    except click.ClickException as exc:
        raise UsageError(exc.format_message()) from exc
