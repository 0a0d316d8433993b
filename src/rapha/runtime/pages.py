"""Self-contained HTML pages: no script, no request, every word from the arguments.

Hostile text is met three times: what is not printable becomes `?`, the template escapes, and the page's own
content security policy allows one style sheet, by its digest, and no more.
"""

from __future__ import annotations

import base64
import hashlib
from functools import partial
from importlib import resources
from typing import Any

from rapha.runtime.charts import Markup
from rapha.spec.surface import printable


def render(package: str, template: str, style: str, **context: object) -> str:
    """The page that `template` of `package` makes with `context`, as HTML text to be written as UTF-8.

    The template also gets `style`, the sheet of that name, and `policy`, the content of its CSP.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    sheet = _resource(package, style)
    digest = base64.b64encode(hashlib.sha256(sheet.encode()).digest()).decode()
    environment = Environment(
        autoescape=True,
        finalize=_plain,
        loader=FunctionLoader(partial(_resource, package)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    shown: dict[str, Any] = {**context, "style": Markup(sheet), "policy": Markup(policy)}
    return environment.get_template(template).render(shown)


def _plain(value: object) -> object:
    # Markup of our own is left as it is; text loses controls, bidirectional overrides and lone surrogates.
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _resource(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text("utf-8")
