package rapha.admission_test

import rego.v1

import data.rapha.admission

codes := {reason.code | some reason in admission.deny}

test_allow_train if {
	admission.allow with input.job.kind as "train"
}

test_allow_evaluation_of_metrics if {
	admission.allow with input.job.kind as "evaluate"
		with input.job.outputs.has_weights as false
		with input.job.outputs.release_dtype as null
		with input.job.outputs.parameters as 0
		with input.job.outputs.self_reported as 0
}

test_deny_evaluation_with_weights if {
	codes == {"policy.outputs"} with input.job.kind as "evaluate"
}

test_deny_evaluation_with_parameters if {
	codes == {"policy.outputs"} with input.job.kind as "evaluate"
		with input.job.outputs.has_weights as false
		with input.job.outputs.release_dtype as null
}

test_deny_evaluation_of_nothing if {
	codes == {"policy.outputs"} with input.job.kind as "evaluate"
		with input.job.outputs.has_weights as false
		with input.job.outputs.release_dtype as null
		with input.job.outputs.parameters as 0
		with input.job.outputs.self_reported as 0
		with input.job.outputs.trusted_metrics as []
}

test_deny_evaluation_with_self_reported_values if {
	codes == {"policy.outputs"} with input.job.kind as "evaluate"
		with input.job.outputs.has_weights as false
		with input.job.outputs.release_dtype as null
		with input.job.outputs.parameters as 0
		with input.job.outputs.self_reported as 1
}

test_deny_kind_not_offered if {
	codes == {"policy.kind"} with input.job.kind as "explore"
}

test_deny_evaluation_where_it_is_not_offered if {
	codes == {"policy.kind"} with input.job.kind as "evaluate"
		with input.job.outputs.has_weights as false
		with input.job.outputs.release_dtype as null
		with input.job.outputs.parameters as 0
		with input.job.outputs.self_reported as 0
		with data.kinds as ["train"]
}

test_deny_number_for_kind if {
	"policy.kind" in codes with input.job.kind as 1
}
