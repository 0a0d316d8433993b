package rapha.admission_test

import rego.v1

import data.rapha.admission

codes := {reason.code | some reason in admission.deny}

test_allow_as_many_as_asked if {
	admission.allow with input.approvals_required as 1
}

test_allow_two_in_production if {
	not "policy.agreement" in codes with input.node.profile as "production"
}

test_deny_one_in_production if {
	"policy.agreement" in codes with input.node.profile as "production"
		with input.approvals_required as 1
}

test_deny_absent if {
	"policy.agreement" in codes with input.approvals_required as null
}
