"""Makes the site of the pages in ``.site/html``: copies them to ``.site/pages``, adds a reference of the HTTP API made
of the gateway's own description, and runs mkdocs.

Usage: make_site.py MKDOCS
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from mycelia.node.serve.openai.openapi import openapi

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / ".site" / "pages"
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)")


def copy_pages() -> None:
    """The pages lie in the copy as in the repository, with the files beside them that they link to."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES / "docs")
    for page in (*ROOT.glob("*.md"), *(ROOT / "proto").glob("*.md")):
        copy_file(page)
    for page in PAGES.rglob("*.md"):
        for link in LINK.findall(page.read_text("utf-8")):
            target = (ROOT / page.relative_to(PAGES)).parent / link
            if target.is_file():
                copy_file(target.resolve())


def copy_file(file: Path) -> None:
    place = PAGES / file.relative_to(ROOT)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, place)


def reference(document: dict[str, Any]) -> str:
    """A page in Markdown of an OpenAPI document."""
    paths: dict[str, dict[str, Any]] = document["paths"]
    schemas: dict[str, dict[str, Any]] = document["components"]["schemas"]
    lines = [
        "# API reference",
        "",
        "Made from the OpenAPI document that every node serves at `/openapi.json` ([this version's](openapi.json)).",
        "What the fields do, and what differs from OpenAI's API: [api.md](api.md).",
    ]
    for path, item in paths.items():
        for method in ("get", "post", "delete"):
            if method in item:
                lines += ["", f"## `{method.upper()} {path}`", "", *operation(item[method])]
    lines += ["", "## Types"]
    for name, schema in schemas.items():
        lines += ["", f"### {title(name)} {{#{anchor(name)}}}", "", *fields(schema)]
    return "\n".join(lines) + "\n"


def operation(described: dict[str, Any]) -> list[str]:
    lines = [described["summary"], ""]
    if "requestBody" in described:
        (content,) = described["requestBody"]["content"].values()
        lines += [f"Body: {kind(content['schema'])}", ""]
    lines += ["| Status | | Content |", "|---|---|---|"]
    for status, reply in described["responses"].items():
        kinds = [f"{kind(one['schema'])} (`{name}`)" for name, one in reply["content"].items()]
        lines.append(f"| {status} | {reply['description']} | {', '.join(kinds)} |")
    return lines


def fields(schema: dict[str, Any]) -> list[str]:
    if "properties" not in schema:
        return [kind(schema)]
    required = schema.get("required", ())
    lines = [schema["description"], ""] if "description" in schema else []
    lines += ["| Field | Type | Default |", "|---|---|---|"]
    for name, field in schema["properties"].items():
        default = f"`{json.dumps(field['default'])}`" if "default" in field else ""
        lines.append(f"| `{name}` | {kind(field)} | {'required' if name in required else default} |")
    return lines


def kind(schema: Any) -> str:
    """A type in words. A type that has a name is a link to it."""
    match schema:
        case {"$ref": str(ref)}:
            name = ref.rpartition("/")[2]
            return f"[{title(name)}](#{anchor(name)})"
        case {"anyOf": list(kinds)}:
            return " or ".join(dict.fromkeys(map(kind, kinds)))
        case {"enum": list(values)}:
            return " or ".join(f"`{json.dumps(value)}`" for value in values)
        case {"const": value}:
            return f"`{json.dumps(value)}`"
        case {"type": "array", "items": items}:
            return f"list of ({kind(items)})" + bounds(schema)
        case {"type": str(name)}:
            return name + bounds(schema)
        case _:
            return "any"


def bounds(schema: dict[str, Any]) -> str:
    names = ("minimum", "exclusiveMinimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")
    told = [f"{name} {schema[name]}" for name in names if name in schema]
    return f" ({', '.join(told)})" if told else ""


def title(name: str) -> str:
    """A type's name; types of the same name in several APIs have their module before it."""
    return ".".join(name.split(".")[-3:]).replace(".types.", ".")


def anchor(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower())


def main() -> None:
    copy_pages()
    document = openapi()
    (PAGES / "docs" / "openapi.json").write_text(json.dumps(document, indent=1))
    (PAGES / "docs" / "api-reference.md").write_text(reference(document), "utf-8")
    config = Path(__file__).with_name("mkdocs.yml")
    # (with --quiet, --strict would not see the warnings)
    command = [sys.argv[1], "build", "--strict", "--config-file", str(config)]
    done = subprocess.run(command, check=False, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
