"""The pages for people: one to try the service, one that documents it; all they need is in them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from starlette.responses import HTMLResponse

_HERE = Path(__file__).parent
_NOTHING = "'none'"
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def try_page() -> HTMLResponse:
    """A form that tags a text."""
    return html_response((_HERE / "page.html").read_text(encoding="utf-8"))


def docs_page(schema: dict[str, Any]) -> HTMLResponse:
    """An OpenAPI schema as plain HTML."""
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, trim_blocks=True)
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=2, ensure_ascii=False)
    return html_response(environment.get_template("docs.html.j2").render(schema=schema, style=style()))


@cache
def style() -> str:
    """The style sheet all pages begin with."""
    found = _INLINE.search((_HERE / "page.html").read_text(encoding="utf-8"))
    return found[2] if found else ""


def html_response(html: str) -> HTMLResponse:
    """A page that may run its own inline script and style, and ask this server, and nothing else."""
    return HTMLResponse(html, headers={"Content-Security-Policy": _policy(html)})


@cache
def _policy(html: str) -> str:
    """Nothing is allowed but the page's own inline script and style, by hash, and requests to this server."""
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    sources = "; ".join(f"{kind}-src {' '.join(found) or _NOTHING}" for kind, found in hashes.items())
    return (
        f"default-src {_NOTHING}; {sources}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
