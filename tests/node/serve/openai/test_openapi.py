"""The gateway's description of itself, tried by a fuzzer that makes requests of it."""

import json
import re
import sys
from pathlib import Path

import jsonschema_rs
import trio

from mycelia.node.serve.gateway import serve_gateway
from mycelia.node.serve.http.server import bind_api
from mycelia.node.serve.openai.openapi import openapi
from mycelia.node.swarms import Swarms
from tests import profiles
from tests.node.members import open_members

EXAMPLES = "10" if profiles.is_full() else "2"
"""Random requests for each path, besides those that cover the description."""
EXPECTED = '[checks.not_a_server_error]\nexpected-statuses = ["2xx", "3xx", "4xx", 504]\n'
"""(a client that allows no time gets the status of a timeout)"""


def test_the_schemas_of_the_description_are_valid_and_all_references_lead_to_one() -> None:
    schemas = openapi()["components"]["schemas"]
    referred = set(re.findall(r'"\$ref": "([^"]*)"', json.dumps(openapi())))
    assert referred and referred <= {f"#/components/schemas/{name}" for name in schemas}
    for name, schema in schemas.items():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
        assert re.fullmatch(r"[\w.-]+", name), "OpenAPI allows no other characters"


async def test_nothing_that_fits_the_gateways_own_description_breaks_it(tmp_path: Path) -> None:
    """The node is in this process, and its engine takes no time."""
    (tmp_path / "schemathesis.toml").write_text(EXPECTED)
    listener = bind_api("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/openapi.json"
    options = (
        "--max-examples",
        EXAMPLES,
        "--checks",
        "not_a_server_error",
        "--phases",
        "coverage,fuzzing",
        "--no-color",
    )
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", url, *options]
    with trio.fail_after(300):
        async with open_members(1) as (_, (one,)), trio.open_nursery() as nursery:
            await nursery.start(serve_gateway, Swarms(one.node), listener)
            done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, cwd=tmp_path)
            assert done.returncode == 0, done.stdout.decode()
            assert not one.engine.vitals().active_requests
            nursery.cancel_scope.cancel()
