"""Generate the reference documents from the code; `--check` fails where one is stale.

docs/reference/schemas/*.json   JSON schemas of everything that is written by hand or signed
docs/reference/refusals.md      every refusal code, its meaning and its fix
docs/reference/states.md        the job's states, as a diagram
docs/reference/cli.md           the help of every command
docs/reference/openapi.json     the coordinator's API
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import BaseModel

ROOT: Final = Path(__file__).resolve().parent.parent / "docs" / "reference"
MODELS: Final = {
    "job.yaml": ("rapha.spec.job", "JobFile"),
    "job": ("rapha.spec.job", "Job"),
    "release-plan": ("rapha.spec.release_plan", "ReleasePlan"),
    "agreement": ("rapha.spec.agreement", "Agreement"),
    "trust": ("rapha.spec.trust", "Trust"),
    "receipt": ("rapha.spec.receipt", "Receipt"),
    "surface": ("rapha.spec.surface", "Surface"),
    "posture": ("rapha.spec.attestation", "Posture"),
    "ticket": ("rapha.spec.attestation", "Ticket"),
    "admission-input": ("rapha.spec.policy", "AdmissionInput"),
    "dataset-manifest": ("rapha.spec.dataset", "DatasetManifest"),
    "catalogue-entry": ("rapha.spec.dataset", "CatalogueEntry"),
    "node": ("rapha.node.config", "NodeConfig"),
}


def documents() -> Iterator[tuple[str, str]]:
    """Every generated file: its name under docs/reference and its text."""
    for name, (module, attribute) in MODELS.items():
        model: type[BaseModel] = getattr(importlib.import_module(module), attribute)
        yield f"schemas/{name}.json", json.dumps(model.model_json_schema(), indent=1, sort_keys=True) + "\n"
    yield "refusals.md", refusals()
    yield "states.md", states()
    yield "cli.md", commands()
    yield "openapi.json", openapi()


def refusals() -> str:
    """One section a code."""
    from rapha.spec.refusals import REGISTRY

    lines = [
        "# Refusal codes",
        "",
        "Generated from `rapha.spec.refusals`. A code never changes its meaning.",
        "",
    ]
    for code, entry in sorted(REGISTRY.items()):
        lines += [f"## `{code}`", "", entry.meaning, "", f"**Fix.** {entry.fix}", ""]
        if entry.depends_on_records:
            lines += ["Depends on records: it leaves the hospital without any detail.", ""]
    return "\n".join(lines)


def states() -> str:
    """The diagram of `rapha.spec.states`."""
    from rapha.spec.states import mermaid

    return f"# Job states\n\nGenerated from `rapha.spec.states`.\n\n```mermaid\n{mermaid()}```\n"


def commands() -> str:
    """`--help` of every command and its sub-commands, at 100 columns and without colour."""
    # Plain text, so that neither terminal nor locale changes it.
    os.environ.update({"COLUMNS": "100", "TERMINAL_WIDTH": "100", "TYPER_USE_RICH": "0"})
    from rapha.cli.main import COMMANDS, run

    text = ["# Commands", "", "Generated from `--help`.", ""]
    for name in COMMANDS:
        for call in [[name], *([name, sub] for sub in _subcommands(name))]:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                run([*call, "--help"])
            body = "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())
            text += [f"## rapha {' '.join(call)}", "", "```text", body, "```", ""]
    return "\n".join(text)


def _subcommands(name: str) -> list[str]:
    from rapha.cli.main import COMMANDS

    app = importlib.import_module(COMMANDS[name][0]).app
    named = [c.name or c.callback.__name__.replace("_", "-") for c in app.registered_commands if c.callback]
    groups = [g.name for g in app.registered_groups if g.name]
    return [*named, *groups] if len(named) > 1 or groups else []


def openapi() -> str:
    """The coordinator's OpenAPI document."""
    from rapha.coordinator.app import create_app
    from rapha.coordinator.config import Work, initialise
    from rapha.coordinator.service import Service

    with tempfile.TemporaryDirectory() as folder:
        work = Work(Path(folder) / "coordinator")
        initialise(work, profile="demo")
        service = Service.open(work)
        try:
            return json.dumps(create_app(service).openapi(), indent=1, sort_keys=True) + "\n"
        finally:
            service.close()


def main() -> int:
    """Write, or compare and say which are stale."""
    check = "--check" in sys.argv[1:]
    stale = []
    for name, text in documents():
        path = ROOT / name
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if check and stale:
        sys.stderr.write(f"stale: {', '.join(stale)}; run python tools/generate.py\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
