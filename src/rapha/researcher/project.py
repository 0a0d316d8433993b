"""A job's folder on the researcher's machine: `job.yaml`, the code, the built image, the signed job."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

from rapha.evidence import canonical, dsse, hpke
from rapha.evidence.keys import SigningKey
from rapha.researcher.signing import SignedJob, sign_job
from rapha.researcher.tickets import Tickets
from rapha.spec.base import Profile
from rapha.spec.job import JobFile, parse_job_file
from rapha.spec.refusals import Refused

TEMPLATES: Final = ("tabular", "outcomes", "dicom", "evaluate", "private")
MAKER: Final = "make_base.py"
"""In a template that brings a model: writes it, since no binary lies in a template."""
RUNTIME: Final = "python-torch"
"""The runtime that images ask for unless told otherwise; nodes name theirs in the catalogue."""


@dataclass(frozen=True, slots=True)
class Project:
    """A folder with a `job.yaml`."""

    folder: Path

    @property
    def file(self) -> Path:
        """`job.yaml`."""
        return self.folder / "job.yaml"

    @property
    def signed_file(self) -> Path:
        """What `sign` writes and `submit` sends."""
        return self.folder / "job.signed.json"

    @property
    def tickets(self) -> Tickets:
        """The tickets that were signed for the jobs of this folder."""
        return Tickets(self.folder / ".tickets")

    def load(self) -> JobFile:
        """Read and check `job.yaml`. Raises `Refused` (`schema.*`)."""
        try:
            return parse_job_file(self.file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise Refused("schema.yaml", f"{self.file}: {error}") from None

    def build(self, source: Path | None = None, base: Path | None = None) -> str:
        """Build the image layout that `image:` names from the code in `source` (default: `code/`).

        With `base`, an OCI layout or an archive of one, the image is a full one on its layers; without,
        the node's runtime is what the code runs on.

        Returns the manifest digest. Raises `Refused` (`image.*`, `schema.*`), for a base model as
        `rapha.runtime.base_model.find`, which says the digest of what is there.
        """
        from rapha.runtime.image import build, build_full

        job = self.load()
        source, out = source or self.folder / "code", self.folder / job.image
        if job.model.base is not None:
            _check_base(source, job.model.base)
        if base is not None:
            return build_full(source, out, base=base, entrypoint=job.entrypoint, predict=job.predict)
        return build(source, out, entrypoint=job.entrypoint, predict=job.predict, runtime=RUNTIME)

    def check_image(self) -> str:
        """The digest of the image as built, which must be readable; a slim one is read to the last file.

        What a full image holds is judged by the bases that a node allows, which are not known here.

        Raises:
            Refused: `schema.*`, `image.*`; `image.base_missing` for a base model that it lacks;
                `image.entrypoint_missing` where job.yaml's commands are others.
        """
        from rapha.runtime.base_model import find_in
        from rapha.runtime.image import inspect, read

        file = self.load()
        image = inspect(self.folder / file.image)
        if image.kind == "slim":
            with read(self.folder / file.image) as unpacked:
                if file.model.base is not None:
                    find_in(unpacked.files, file.model.base)
        if image.entrypoint != file.entrypoint or image.predict != file.predict:
            raise Refused("image.entrypoint_missing", "job.yaml's commands changed since the image was built")
        return image.digest

    def sign(self, key: SigningKey, profile: Profile) -> SignedJob:
        """Sign the job and the image as built; a new nonce makes it a new job each time.

        The statement about the image also goes into its layout, where that is a folder, and travels with
        it from registry to registry; the image's digest does not change.

        Raises:
            Refused: `schema.*`, `image.*`.
        """
        from rapha.runtime.image import attach

        file = self.load()
        job = file.to_job(image_digest=self.check_image(), recipient=self._recipient(file))
        signed = sign_job(job, key, profile)
        if (self.folder / file.image).is_dir():
            attach(self.folder / file.image, signed.image_bytes)
        self.signed_file.write_text(json.dumps(signed.dump(), indent=1) + "\n")
        return signed

    def signed(self) -> SignedJob:
        """The job as last signed. Raises `Refused` (`schema.envelope`, `schema.json`)."""
        try:
            value: Any = canonical.loads(self.signed_file.read_bytes())
        except OSError:
            raise Refused(
                "schema.envelope", f"{self.signed_file} is not there: run `rapha job sign`"
            ) from None
        if not isinstance(value, Mapping) or set(value) != {"id", "job", "image"}:
            raise Refused("schema.envelope", f"{self.signed_file} is not a signed job")
        body = dsse.unverified_predicate(value["job"])
        claims = {"job": body.get("job"), "nonce": body.get("nonce")}
        if not isinstance(claims["job"], Mapping) or canonical.digest(claims) != value["id"]:
            raise Refused("schema.envelope", f"{self.signed_file} is not a signed job")
        return SignedJob(value["id"], value["job"], value["image"])

    def pack(self) -> Path:
        """The image as one archive, ready for upload."""
        from rapha.runtime.image import pack

        archive = self.folder / ".image.tar"
        pack(self.folder / self.load().image, archive)
        return archive

    def _recipient(self, file: JobFile) -> str:
        path = self.folder / file.recipient
        try:
            text = path.read_text(encoding="ascii").strip()
        except OSError as error:
            raise Refused("schema.field_invalid", f"recipient: {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise Refused("schema.field_invalid", f"recipient: {path} is not a public key") from None
        if path.with_name(path.name + ".pub").exists():  # both halves look alike, and this one would be sent
            raise Refused(
                "schema.field_invalid", f"recipient: {path} is the private key; name {path.name}.pub"
            )
        hpke.parse_public(text)
        return text


def _check_base(source: Path, digest: str) -> None:
    """Whether the base model is among what `build` ships. Raises `Refused` (`image.base_*`)."""
    from rapha.runtime.base_model import SUFFIX, find
    from rapha.runtime.image.build import SKIPPED

    names = (path.relative_to(source) for path in source.rglob(f"*{SUFFIX}") if path.is_file())
    shipped = (n for n in names if not any(part.startswith(".") or part in SKIPPED for part in n.parts))
    find({name.as_posix(): source / name for name in shipped}, digest)


def init(template: str, folder: Path) -> Project:
    """Copy a working template, and make its result key and the model that it brings, if it does.

    Raises:
        Refused: `schema.field_invalid`, `policy.conflict`.
    """
    if template not in TEMPLATES:
        raise Refused("schema.field_invalid", f"template: choose one of {', '.join(TEMPLATES)}")
    if folder.exists() and any(folder.iterdir()):
        raise Refused("policy.conflict", f"{folder} is not empty")
    with as_file(files("rapha.researcher") / "templates" / template) as source:
        shutil.copytree(
            source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "__init__.py")
        )
    # A job of the hospital's own trainer has no code, and its image holds an empty folder.
    (folder / "code").mkdir(exist_ok=True)
    if (folder / MAKER).exists():
        runpy.run_path(str(folder / MAKER))["write"]()
    project = Project(folder)
    key = folder / project.load().recipient.removesuffix(".pub")
    hpke.generate(key)
    return project
