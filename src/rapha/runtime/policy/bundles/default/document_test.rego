package rapha.admission_test

import rego.v1

import data.rapha.admission

codes := {reason.code | some reason in admission.deny}

test_allow_complete if {
	admission.allow with input.job.kind as "train"
}

test_allow_null_as_present if {
	not "schema.field_missing" in codes with input.job.budget_max as null
}

test_deny_missing_leaf if {
	codes == {"schema.field_missing"} with input.node as {"profile": "demo", "assurance": "simulated"}
}

test_deny_missing_branch if {
	"schema.field_missing" in codes with input.job as {}
}

test_deny_no_word_about_private_training if {
	codes == {"schema.field_missing"} with input.job as object.remove(input.job, ["private"])
}
