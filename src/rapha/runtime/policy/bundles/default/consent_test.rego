package rapha.admission_test

import rego.v1

import data.rapha.admission

codes := {reason.code | some reason in admission.deny}

test_allow_covered if {
	admission.allow with input.dataset.consent_basis as "UK GDPR Art. 6(1)(e)"
		with input.dataset.organisations as ["other", "acme-ai"]
}

test_deny_no_basis if {
	codes == {"consent.basis"} with input.dataset.consent_basis as ""
}

test_deny_blank_basis if {
	codes == {"consent.basis"} with input.dataset.consent_basis as "  "
}

test_deny_other_organisation if {
	codes == {"consent.organisation"} with input.dataset.organisations as ["other"]
}

test_deny_no_organisation if {
	codes == {"consent.organisation"} with input.dataset.organisations as []
}

test_deny_other_purpose if {
	codes == {"consent.purpose"} with input.dataset.purposes as ["research/prognosis"]
}
