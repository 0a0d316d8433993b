# Admission of a job: default deny, and reasons for a no.
#
# `allow` needs more than the absence of a reason: every area has a positive rule, and a fact that is
# missing leaves it undefined. Each deny rule is the negation of its positive rule, so it fires on a
# missing fact too; its message is built with `told`, which is always defined.
package rapha.admission

import rego.v1

default allow := false

allow if {
	count(deny) == 0
	approvals_enough
	assurance_enough
	budget_enough
	compute_within
	consent_recorded
	dataset_offered
	document_complete
	kind_within
	network_absent
	outputs_within
	purpose_agreed
	reviews_enough
	scan_acceptable
}

# A fact of the input for a message; null where it is absent, so that a message is never undefined.
told(path) := object.get(input, path, null)
