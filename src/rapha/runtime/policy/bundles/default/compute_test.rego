package rapha.admission_test

import rego.v1

import data.rapha.admission

codes := {reason.code | some reason in admission.deny}

test_allow_without_gpu if {
	admission.allow with input.job.compute.gpus as 0
}

test_deny_gpu if {
	codes == {"policy.compute"} with input.job.compute.gpus as 1
}

test_deny_absent if {
	"policy.compute" in codes with input.job.compute.gpus as null
}
