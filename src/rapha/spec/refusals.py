"""The one registry of refusal codes.

A code never changes its meaning. The family says what it is: `schema` and `image` are mistakes to fix;
`policy`, `consent` and `privacy` are rules; `budget` is money or limits; `posture` and `node` are the
node's state; `job` is how the code ended. `docs/refusals.md` is generated from this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Entry:
    """What a code means, the smallest change that passes, and whether it depends on records.

    A code that depends on records leaves the hospital without any detail.
    """

    meaning: str
    fix: str
    depends_on_records: bool = False


def _e(meaning: str, fix: str, depends_on_records: bool = False) -> Entry:
    return Entry(meaning, fix, depends_on_records)


REGISTRY: Final[dict[str, Entry]] = {
    # schema: the text of the job
    "schema.yaml": _e("The file is not readable YAML.", "Correct the YAML at the line named."),
    "schema.json": _e("The bytes are not strict JSON.", "Send UTF-8 JSON without duplicate keys."),
    "schema.too_large": _e("The document is larger than the limit.", "Make it smaller; the limit is named."),
    "schema.field_unknown": _e("A field is not part of the format.", "Remove the field or correct its name."),
    "schema.field_missing": _e("A required field is absent.", "Add the field."),
    "schema.field_invalid": _e(
        "A field has a wrong type or value.", "Correct the field as the message says."
    ),
    "schema.plan_invalid": _e(
        "The release plan contradicts itself.", "Correct the plan as the message says."
    ),
    "schema.cohort_field": _e(
        "The cohort names a field that the dataset does not have.", "Use a field of the catalogue entry."
    ),
    "schema.transform": _e(
        "A declared transform does not fit the field it is for.", "Correct `dataset.transforms` as it says."
    ),
    "schema.envelope": _e("The signed envelope is malformed.", "Sign again with `rapha job sign`."),
    # image: what the submitter built
    "image.not_found": _e("The image or a blob of it is absent.", "Build the image with `rapha job build`."),
    "image.layout_invalid": _e(
        "The image is not a readable OCI layout.", "Build the image with `rapha job build`."
    ),
    "image.digest_mismatch": _e(
        "A blob or the image is not what its digest says.", "Build and sign the image again."
    ),
    "image.unsigned": _e("No signed statement for this image came with the job.", "Run `rapha job sign`."),
    "image.signature_invalid": _e(
        "The image statement does not verify, or names another image.",
        "Sign this image with a key pinned in the agreement.",
    ),
    "image.too_large": _e(
        "The image passes a size, entry or depth limit.", "Make the image smaller; the limit is named."
    ),
    "image.path_unsafe": _e("An archive entry leaves the root or is ambiguous.", "Rebuild from plain files."),
    "image.file_type": _e(
        "An archive entry is a device, FIFO, setuid file or other special file.",
        "Ship plain files and folders only.",
    ),
    "image.encrypted": _e("A layer of the image is encrypted.", "Export the image without encryption."),
    "image.runtime_unknown": _e(
        "The image asks for a runtime that the node does not offer.", "Use a runtime of the catalogue entry."
    ),
    "image.entrypoint_missing": _e(
        "The entrypoint names a file that is not in the image.", "Correct `entrypoint` or add the file."
    ),
    "image.network_module": _e(
        "Code reachable from an entrypoint imports a module that opens sockets.",
        "Remove the import; there is no network in the sandbox.",
    ),
    "image.dynamic_code": _e(
        "Code reachable from an entrypoint builds or loads code at run time.",
        "Write the import or the call out.",
    ),
    "image.subprocess": _e(
        "Code reachable from an entrypoint starts other programs.", "Call a library instead."
    ),
    "image.native_code": _e(
        "The image carries native code that can't be judged.", "Use the runtime's own packages."
    ),
    "image.pickle": _e(
        "The image carries a file that runs code when it is loaded.", "Save tensors as safetensors."
    ),
    "image.startup_hook": _e(
        "A file would run code when Python starts.", "Remove the .pth, sitecustomize or usercustomize file."
    ),
    "image.shadowing": _e(
        "A file replaces or changes rapha_trainer or the standard library.",
        "Rename the file, or do not assign into the module.",
    ),
    "image.unparsable": _e(
        "A Python file in the image can't be parsed.", "Correct the syntax error at the line named."
    ),
    "image.unjudged": _e(
        "A file is of a kind that can hide code and can't be judged.",
        "Ship tensors as safetensors and data as plain files.",
    ),
    "image.unresolved_import": _e(
        "Code imports a module that is neither in the image nor in the runtime.",
        "Add the module to the image, or use a runtime that has it.",
    ),
    "image.base_missing": _e(
        "The base model that the job names is not in the image, or is there more than once.",
        "Put the file below code/ once, and its SHA-256 into `model.base`.",
    ),
    "image.base_invalid": _e(
        "The base model is not a plain safetensors file.",
        "Save the tensors again with safetensors, without metadata.",
    ),
    "image.secret": _e(
        "The image carries what looks like a private key or token.", "Remove it; and revoke it."
    ),
    # policy: rules
    "policy.signature_invalid": _e(
        "The job's signature does not verify.", "Sign with a developer key pinned in the agreement."
    ),
    "policy.agreement": _e(
        "No agreement in force covers this job.", "Check the agreement's parties, term and keys."
    ),
    "policy.profile_mismatch": _e(
        "The job and the node are of different profiles.", "Sign the job for the node's profile."
    ),
    "policy.job_expired": _e("`not_after` has passed.", "Set a later `not_after` and sign again."),
    "policy.job_replayed": _e(
        "This job id was run here before.", "Sign again; each signing makes a new job."
    ),
    "policy.node_not_eligible": _e(
        "The job does not name this node.", "Add the node to `nodes`, or use `any`."
    ),
    "policy.denied": _e("A policy rule refuses the job.", "See the reasons; each names the rule."),
    "policy.dataset": _e(
        "The policy does not offer this dataset profile or modality.", "Use a profile of the catalogue entry."
    ),
    "policy.purpose": _e("The purpose is outside the agreement.", "Use a purpose that the agreement names."),
    "policy.outputs": _e(
        "The release plan asks for more than the policy grants.",
        "Ask for fewer bytes, a smaller dtype, or metrics only.",
    ),
    "policy.kind": _e("This node does not run jobs of this kind.", "Use a kind that the policy offers."),
    "policy.private": _e(
        "This private training can't be done, or not at what it promises.",
        "Change `private` as the message says.",
    ),
    "policy.leakage": _e(
        "The hospital demands a membership test that this job can't be put to.",
        "Plan trusted_metrics of the released weights, and name the `predict` command.",
    ),
    "policy.network": _e("The job asks for a network.", "Remove it; there is none."),
    "policy.assurance": _e(
        "The node's assurance is below what the policy or the job accepts.",
        "Accept this assurance in the job, or use another node.",
    ),
    "policy.compute": _e(
        "The job asks for hardware that the policy does not offer.", "Lower `compute.gpus`."
    ),
    "policy.scan": _e(
        "The scanner has findings that the policy forbids.", "Fix the findings listed by `rapha scan`."
    ),
    "policy.undefined": _e("The policy gave no answer.", "Tell the hospital: its bundle has no decision."),
    "policy.error": _e("The policy could not be evaluated.", "Tell the hospital: its bundle has an error."),
    "policy.timeout": _e("The policy took too long.", "Tell the hospital: its bundle does not end."),
    "policy.approval_missing": _e(
        "The owners' signatures did not come in time.", "Ask the hospital; submit again."
    ),
    "policy.approval_invalid": _e(
        "An approval is not by a pinned approver, or covers something else.",
        "The owners must sign the request as shown.",
    ),
    "policy.approval_refused": _e("An owner said no.", "Ask the hospital."),
    "policy.review_refused": _e("An output reviewer said no.", "Ask the hospital."),
    "policy.not_authorised": _e("The caller may not do this.", "Use a key with the right scope."),
    # consent and privacy
    "consent.organisation": _e(
        "The dataset's manifest does not list this organisation.",
        "Ask the hospital for an agreement on this dataset.",
    ),
    "consent.purpose": _e(
        "The dataset's consent does not cover this purpose.", "Use a purpose of the catalogue entry."
    ),
    "consent.basis": _e("The dataset has no legal basis on record.", "The hospital completes the manifest."),
    "privacy.cohort_refused": _e(
        "The cohort may not be used.",
        "Widen the cohort; numbers are not given, so that asking teaches nothing.",
        True,
    ),
    # budget
    "budget.max": _e(
        "The records asked for may cost more than the budget.", "Raise `budget.max` or lower `max_records`."
    ),
    "budget.required": _e("The dataset has a price and the job no budget.", "Add `budget`."),
    "budget.no_settlement": _e(
        "The dataset has a price and no vault is configured.", "The operator configures settlement."
    ),
    "budget.disclosure": _e(
        "The dataset may not give away as much more as the job could release.",
        "Release less, as the message says, or ask the hospital.",
    ),
    # posture
    "posture.evidence_invalid": _e(
        "The attestation evidence does not appraise.", "The hospital checks `rapha node doctor`."
    ),
    "posture.assurance_low": _e(
        "The evidence is weaker than asked for.", "Lower `assurance`, or use another node."
    ),
    "posture.ticket_missing": _e(
        "The researcher's ticket did not come in time.",
        "Keep `rapha job watch` running until the job is admitted.",
    ),
    "posture.ticket_invalid": _e(
        "The ticket names another job, node or evidence, or is not signed by a pinned key.",
        "Let the client make the ticket.",
    ),
    "posture.ticket_reused": _e("The ticket was used before.", "Submit a new job."),
    "posture.seal_failed": _e(
        "The trainer or the node could still reach out.", "The hospital checks `rapha node doctor`."
    ),
    # node
    "node.restarted": _e("The node stopped in the middle of the job.", "Submit a new job."),
    "node.stopped": _e("The hospital stopped the node.", "Ask the hospital; submit a new job."),
    "node.busy": _e("The node is running another job.", "Wait."),
    "node.dataset_missing": _e(
        "The dataset's folder or file is not there.", "The hospital mounts the dataset."
    ),
    "node.dataset_slow": _e(
        "The records could not be opened or decoded in the time the node allows.",
        "Look at the archive or PACS, narrow the dataset, or raise `preparation.limit_s` in node.json.",
    ),
    "node.dataset_writable": _e(
        "The dataset's folder or file can be written by the node.", "The hospital mounts it read-only."
    ),
    "node.dataset_invalid": _e(
        "The dataset does not match its manifest.", "The hospital corrects the manifest or the data."
    ),
    "node.query_broad": _e(
        "A search of the PACS would not be narrowed to the dataset.",
        "The hospital names studies, patients, or a modality with a window of dates.",
    ),
    "node.sandbox_unavailable": _e(
        "The sandbox can't be built on this host.", "The hospital checks `rapha node doctor`."
    ),
    "node.key_unsafe": _e(
        "A key file is missing, of a wrong size, or readable by others.",
        "Run `rapha node doctor` and follow it.",
    ),
    "node.swap_on": _e(
        "The host may write records to its swap.",
        "The hospital switches swap off, or lets the node lock memory (LimitMEMLOCK=infinity).",
    ),
    "node.disk_full": _e("There is no room to go on.", "The hospital frees space."),
    "node.config": _e("The node's configuration is not valid.", "Correct the field named."),
    "node.journal_invalid": _e(
        "The journal of served records does not verify.",
        "The hospital keeps the file and submits no count from it.",
    ),
    "node.ledger_invalid": _e(
        "The disclosure ledger does not verify, or is older than the node's log.",
        "The hospital restores the newest copy; no job runs on the dataset before that.",
    ),
    "node.internal": _e(
        "A gate could not find out; that is a refusal.", "Tell the hospital; its log has the cause."
    ),
    # job
    "job.startup": _e(
        "The code ended with an error before the first record was served.",
        "Fix the exception at the file and line named.",
    ),
    "job.no_records": _e(
        "The code ended well without asking for a record.",
        "Read from RaphaDataLoader; what learned from nothing is not released.",
    ),
    "job.failed": _e(
        "The code ended with an error after records were served.",
        "Run it at home on records of the same schema; nothing more may be said.",
    ),
    "job.time": _e("The code ran past its wall clock or CPU time.", "Raise `compute.wall_clock` or do less."),
    "job.memory": _e("The code used more memory than it asked for.", "Raise `compute.memory` or use less."),
    "job.outputs": _e(
        "What the code left is not what the release plan says.",
        "Run `rapha guard inspect` on your own output.",
    ),
    "job.cancelled": _e("The researcher cancelled the job.", "Nothing to do."),
    "job.expired": _e("No node took the job in time.", "Submit again, or widen `nodes`."),
    # coordinator
    "policy.not_found": _e("There is no such object, or it is not yours.", "Check the id."),
    "policy.conflict": _e("The object is in another state than the call assumes.", "Read it again."),
    "policy.request_replayed": _e(
        "The signed request was seen before or is too old.", "Sign a new request; check the clock."
    ),
    "policy.log_invalid": _e(
        "The log's checkpoint or proof does not verify.",
        "Fetch it again; if it persists, tell the log's monitors: the log may have forked.",
    ),
    "policy.unavailable": _e(
        "The coordinator could not find out; nothing was acknowledged.", "Try again; the call is idempotent."
    ),
    "budget.rate": _e("Too many requests or open registrations.", "Wait, then try again."),
    "budget.storage": _e(
        "The coordinator's disk or the caller's quota is full.", "Send less, or ask the network's operator."
    ),
}


class Refused(Exception):  # noqa: N818  a refusal is a verdict, not a defect
    """A gate's no: a registered code and what exactly was wrong.

    Attributes:
        code: a key of `REGISTRY`.
        detail: one line for the person who can fix it. For codes that depend on records it stays in
            the hospital (`rapha.spec.surface` drops it).
    """

    def __init__(self, code: str, detail: str = "") -> None:
        entry = REGISTRY[code]
        super().__init__(f"{code}: {detail or entry.meaning}")
        self.code = code
        self.detail = detail or entry.meaning
        self.fix = entry.fix


def entry(code: str) -> Entry:
    """The registered meaning and fix of `code` (KeyError if it is not registered)."""
    return REGISTRY[code]
