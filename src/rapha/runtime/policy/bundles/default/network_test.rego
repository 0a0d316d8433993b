package rapha.admission_test

import rego.v1

import data.rapha.admission

codes := {reason.code | some reason in admission.deny}

test_allow_no_network if {
	admission.allow with input.job.network as false
}

test_deny_network if {
	codes == {"policy.network"} with input.job.network as true
}

test_deny_unknown if {
	codes == {"policy.network"} with input.job.network as null
}
