package rapha.admission_test

import rego.v1

import data.rapha.admission

codes := {reason.code | some reason in admission.deny}

test_allow_named_purpose if {
	admission.allow with input.agreement.purposes as ["research/diagnosis"]
}

test_deny_other_purpose if {
	"policy.purpose" in codes with input.job.purpose as "marketing"
}

test_deny_no_inheritance if {
	codes == {"policy.purpose"} with input.agreement.purposes as ["research"]
}

test_deny_no_purpose if {
	codes == {"policy.purpose"} with input.agreement.purposes as []
}
