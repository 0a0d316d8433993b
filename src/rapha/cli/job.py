"""`rapha job`: from a template to results, on the researcher's side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rapha.cli.exits import NO, OK, UNKNOWN, WRONG_CALL, emit, emit_json, leave, say
from rapha.cli.job_mock import mock
from rapha.evidence import canonical, hpke
from rapha.evidence.keys import SigningKey
from rapha.researcher.project import TEMPLATES, Project
from rapha.researcher.project import init as init_project
from rapha.spec.refusals import Refused
from rapha.spec.trust import Trust

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

Folder = Annotated[Path, typer.Argument(help="The job's folder, with its job.yaml.")]
Coordinator = Annotated[str, typer.Option(envvar="RAPHA_COORDINATOR", help="Coordinator's URL.")]
ApiKey = Annotated[Path, typer.Option(envvar="RAPHA_API_KEY_FILE", help="File with the API key.")]
Key = Annotated[Path, typer.Option("--key", envvar="RAPHA_KEY", help="Your developer key (PEM).")]
TrustFile = Annotated[Path, typer.Option("--trust", envvar="RAPHA_TRUST", help="Your trust file.")]
AgreementFile = Annotated[Path, typer.Option("--agreement", help="The signed agreement.")]


@app.command()
def init(
    folder: Folder,
    template: Annotated[str, typer.Option(help=f"One of: {', '.join(TEMPLATES)}.")] = "tabular",
) -> None:
    """Start from a working template, with a fresh key for its results."""
    init_project(template, folder)
    emit(f"{folder}: edit what is in code/ and job.yaml, then `rapha job build {folder}`")


@app.command()
def check(folder: Folder) -> None:
    """Check job.yaml, and the image if it was built. Exit 0 yes, 1 no."""
    project = Project(folder)
    try:
        job = project.load()
        if (folder / job.image).exists():
            project.check_image()
    except Refused as refused:
        leave(NO, f"refused: {refused.code}: {refused.detail}\nfix: {refused.fix}")
    emit(f"{job.name}: ok")


@app.command()
def build(
    folder: Folder,
    source: Annotated[Path | None, typer.Option(help="The code; default FOLDER/code.")] = None,
    base: Annotated[
        Path | None, typer.Option(help="OCI layout or archive to build on; default: the node's runtime.")
    ] = None,
) -> None:
    """Build the image, the same bytes on every machine. Prints its digest."""
    emit(Project(folder).build(source, base))


@app.command()
def sign(
    folder: Folder,
    key: Key,
    profile: Annotated[str, typer.Option(help="demo or production.")] = "demo",
) -> None:
    """Sign the job and its image. Prints the job's id; each signing makes a new job."""
    if profile not in ("demo", "production"):
        leave(WRONG_CALL, "--profile is demo or production")
    emit(Project(folder).sign(SigningKey.load(key), "demo" if profile == "demo" else "production").id)


@app.command()
def submit(folder: Folder, coordinator: Coordinator, api_key: ApiKey) -> None:
    """Send the signed job and its image. Prints the job's id."""
    project = Project(folder)
    signed = project.signed()
    with _client(coordinator, api_key) as client:
        client.submit(signed.job, signed.image, project.pack())
    emit(signed.id)


@app.command("list")
def list_jobs(coordinator: Coordinator, api_key: ApiKey) -> None:
    """Your jobs, newest last."""
    with _client(coordinator, api_key) as client:
        for job in client.list():
            emit(f"{job['id']}  {job['state']}  {job.get('code') or ''}")


@app.command()
def status(job: str, coordinator: Coordinator, api_key: ApiKey) -> None:
    """One job as JSON, with its refusal and the fix if it has one."""
    with _client(coordinator, api_key) as client:
        emit_json(client.get(job))


@app.command()
def cancel(job: str, coordinator: Coordinator, api_key: ApiKey) -> None:
    """Cancel a job that has not been released."""
    with _client(coordinator, api_key) as client:
        emit_json(client.cancel(job))


@app.command()
def watch(
    folder: Folder,
    coordinator: Coordinator,
    api_key: ApiKey,
    key: Key,
    trust: TrustFile,
    agreement: AgreementFile,
) -> None:
    """Follow the job, and give the node its ticket once its evidence appraises. Exit 0 if delivered."""
    with _client(coordinator, api_key) as client:
        last = follower(client, Project(folder), key, trust, agreement).watch(_tell)
    raise SystemExit(OK if last["state"] in ("delivered", "anchored", "settled") else NO)


@app.command()
def fetch(
    folder: Folder,
    coordinator: Coordinator,
    api_key: ApiKey,
    key: Key,
    trust: TrustFile,
    agreement: AgreementFile,
    results_key: Annotated[Path, typer.Option(help="Private half of `recipient`.")],
    out: Annotated[Path, typer.Option(help="Where bundle.json and artifacts/ go.")] = Path("results"),
) -> None:
    """Download, decrypt, and check the results against the receipt; nothing is written if they differ."""
    with _client(coordinator, api_key) as client:
        follower(client, Project(folder), key, trust, agreement).fetch(hpke.load(results_key), out)
    emit(str(out / "bundle.json"))


app.command()(mock)


def follower(client: Any, project: Project, key: Path, trust: Path, agreement: Path) -> Any:
    """Wire a `Follower` from files."""
    from rapha.evidence.agreement import open_agreement
    from rapha.researcher.follow import Follower

    roots = Trust.parse(_json(trust), trust.name)
    signed = project.signed()
    terms = open_agreement(_json(agreement), roots).terms
    return Follower(client, SigningKey.load(key), roots, terms, signed.job, project.tickets)


def _client(url: str, api_key: Path) -> Any:
    from rapha.researcher.client import CoordinatorClient

    try:
        return CoordinatorClient(url, api_key.read_text().strip())
    except OSError as error:
        leave(UNKNOWN, f"{api_key}: {error.strerror}")


def _json(path: Path) -> Any:
    try:
        return canonical.loads(path.read_bytes())
    except OSError as error:
        leave(UNKNOWN, f"{path}: {error.strerror}")


def _tell(event: Mapping[str, Any]) -> None:
    code = f"  {event['code']}: {event.get('detail') or ''}" if event.get("code") else ""
    say(f"{event['time']}  {event['state']}{code}")
    if event.get("fix"):
        say(f"  fix: {event['fix']}")
