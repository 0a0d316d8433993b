package rapha.admission_test

import rego.v1

import data.rapha.admission

codes := {reason.code | some reason in admission.deny}

test_allow_one_in_a_demo if {
	admission.allow with input.reviews_required as 1
}

test_allow_two_in_production if {
	not "policy.agreement" in codes with input.node.profile as "production"
}

test_deny_one_in_production if {
	"policy.agreement" in codes with input.node.profile as "production"
		with input.reviews_required as 1
}

test_deny_absent if {
	"policy.agreement" in codes with input.reviews_required as null
}

test_deny_text if {
	"policy.agreement" in codes with input.reviews_required as "2"
}
