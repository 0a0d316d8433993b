# The manifest has a legal basis, and it covers this organisation and this purpose.
package rapha.admission

import rego.v1

deny contains {
	"code": "consent.basis",
	"message": sprintf("dataset %v has no legal basis on record", [told(["dataset", "id"])]),
	"fix": "The hospital completes the manifest.",
} if {
	not basis_recorded
}

deny contains {
	"code": "consent.organisation",
	"message": sprintf(
		"the manifest of dataset %v does not list organisation %v",
		[told(["dataset", "id"]), told(["agreement", "organisation"])],
	),
	"fix": "Ask the hospital to add the organisation to the dataset's manifest.",
} if {
	not organisation_listed
}

deny contains {
	"code": "consent.purpose",
	"message": sprintf(
		"the consent of dataset %v does not cover the purpose %v",
		[told(["dataset", "id"]), told(["job", "purpose"])],
	),
	"fix": "Use a purpose of the catalogue entry.",
} if {
	not purpose_consented
}

consent_recorded if {
	basis_recorded
	organisation_listed
	purpose_consented
}

basis_recorded if {
	is_string(input.dataset.consent_basis)
	trim_space(input.dataset.consent_basis) != ""
}

organisation_listed if input.agreement.organisation in input.dataset.organisations

purpose_consented if input.job.purpose in input.dataset.purposes
