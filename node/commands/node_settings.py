"""The settings of a node, from the options of ``mycelia node``: at its start, and again while it runs."""

import os
from collections.abc import Callable

import click
from click.core import ParameterSource

from mycelia.node.commands.checks import (
    check_announce,
    check_cors,
    check_hosts,
    check_listen,
    check_policy,
    check_tls,
    model_in_swarm,
    read_aliases,
    read_api_keys,
    read_bootstrap,
    read_swarm_key,
    read_tensor_split,
)
from mycelia.node.commands.fetching import model_here, other_name
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
    asked, model = given["model"], find_model(given["model"])
    where = given["data_dir"] or default_data_dir()
    is_default = context.get_parameter_source("model") is ParameterSource.DEFAULT
    host = given["api_host"] or DEFAULT_API_HOST
    key = "" if context.find_root().params["isolated"] else os.environ.get("MYCELIA_API_KEY", "")
    model = model_in_swarm(where, swarm, "" if is_default else model) or model
    return NodeSettings(
        data_dir=where,
        model=model,
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
        aliases=(*read_aliases(given["alias"]), *other_name(asked, model)),
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
        debug=given["debug"],
    )


def settings_again(context: click.Context, model: str) -> NodeSettings:
    """The settings of a node that was started with ``context``, as the configuration is now. Options that were given on
    the command line stay. model: the one that it serves; another one is not fetched. Raises LocalError."""
    from mycelia.node.commands.config_file import Schema

    def find_model(asked: str) -> str:
        return model if asked == context.params["model"] else asked

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
