# Every fact of the published input document is there, also those that no rule of this set looks at.
package rapha.admission

import rego.v1

deny contains {
	"code": "schema.field_missing",
	"message": concat(" ", ["the input document lacks", lacking]),
	"fix": "Build the document from the published schema.",
} if {
	count(missing) > 0
}

lacking := concat(", ", sort(missing)) if count(missing) <= 12

# A message has an end, and a whole branch of the document would not fit.
lacking := sprintf("%v facts", [count(missing)]) if count(missing) > 12

document_complete if {
	is_object(input)
	count(missing) == 0
}

# Two defaults that differ come back equal only if the path is there, whatever its value.
missing contains concat(".", path) if {
	some path in facts
	object.get(input, path, 1) != object.get(input, path, 2)
}

facts := [
	["agreement", "currency"],
	["agreement", "datasets"],
	["agreement", "id"],
	["agreement", "least_assurance"],
	["agreement", "max_output_bytes"],
	["agreement", "organisation"],
	["agreement", "price_per_record"],
	["agreement", "purposes"],
	["approvals_required"],
	["dataset", "consent_basis"],
	["dataset", "id"],
	["dataset", "minimum_cell"],
	["dataset", "modality"],
	["dataset", "organisations"],
	["dataset", "price_per_record"],
	["dataset", "profile"],
	["dataset", "purposes"],
	["job", "assurance"],
	["job", "budget_max"],
	["job", "compute", "cpus"],
	["job", "compute", "gpus"],
	["job", "compute", "memory_bytes"],
	["job", "compute", "wall_clock_s"],
	["job", "dataset", "cohort_fields"],
	["job", "dataset", "max_records"],
	["job", "dataset", "modality"],
	["job", "dataset", "profile"],
	["job", "id"],
	["job", "kind"],
	["job", "network"],
	["job", "outputs", "bits"],
	["job", "outputs", "bytes"],
	["job", "outputs", "has_weights"],
	["job", "outputs", "noise"],
	["job", "outputs", "parameters"],
	["job", "outputs", "release_dtype"],
	["job", "outputs", "self_reported"],
	["job", "outputs", "subgroups"],
	["job", "outputs", "trusted_metrics"],
	["job", "private"],
	["job", "purpose"],
	["node", "assurance"],
	["node", "id"],
	["node", "profile"],
	["reviews_required"],
	["scan", "digest"],
	["scan", "findings"],
	["settlement_configured"],
]
