package rapha.admission_test

import rego.v1

import data.rapha.admission

codes := {reason.code | some reason in admission.deny}

test_allow_simulated_in_demo if {
	admission.allow with input.node.assurance as "simulated"
}

test_allow_stronger if {
	admission.allow with input.node.assurance as "tee+tpm"
}

test_allow_full_in_production if {
	admission.allow with input.node as {"id": "n", "profile": "production", "assurance": "tee+tpm"}
}

test_allow_waiver if {
	admission.allow with input.node as {"id": "n", "profile": "production", "assurance": "tee"}
		with data.assurance.waiver as "tee"
}

test_deny_none if {
	"policy.assurance" in codes with input.node.assurance as "none"
}

test_deny_below_job if {
	"policy.assurance" in codes with input.job.assurance as "tpm"
}

test_deny_below_agreement if {
	"policy.assurance" in codes with input.agreement.least_assurance as "tee"
}

test_deny_simulated_in_production if {
	"policy.assurance" in codes with input.node.profile as "production"
}

test_deny_tee_alone_in_production if {
	"policy.assurance" in codes
		with input.node as {"id": "n", "profile": "production", "assurance": "tee"}
}

test_deny_waiver_for_simulation if {
	"policy.assurance" in codes with input.node.profile as "production"
		with data.assurance.waiver as "simulated"
}

test_deny_unknown_level if {
	"policy.assurance" in codes with input.node.assurance as "certified"
}

test_deny_unknown_profile if {
	"policy.assurance" in codes with input.node.profile as "staging"
}
