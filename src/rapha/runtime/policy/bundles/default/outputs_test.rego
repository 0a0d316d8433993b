package rapha.admission_test

import rego.v1

import data.rapha.admission

codes := {reason.code | some reason in admission.deny}

test_allow_all_granted_bytes if {
	admission.allow with input.job.outputs.bytes as 1048576
}

test_allow_int8 if {
	admission.allow with input.job.outputs.release_dtype as "int8"
}

test_allow_metrics_only if {
	admission.allow with input.job.outputs.has_weights as false
		with input.job.outputs.release_dtype as null
}

test_deny_one_byte_more if {
	codes == {"policy.outputs"} with input.job.outputs.bytes as 1048577
}

test_deny_past_our_limit if {
	codes == {"policy.outputs"} with input.job.outputs.bytes as 1073741825
		with input.agreement.max_output_bytes as 10000000000
}

test_deny_f32 if {
	codes == {"policy.outputs"} with input.job.outputs.release_dtype as "f32"
}

test_deny_weights_without_dtype if {
	codes == {"policy.outputs"} with input.job.outputs.release_dtype as null
}

test_deny_text_for_bytes if {
	codes == {"policy.outputs"} with input.agreement.max_output_bytes as "1048576"
}
