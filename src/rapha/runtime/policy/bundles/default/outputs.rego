# What may leave is within the bytes and the dtypes that were granted before any record is read.
package rapha.admission

import rego.v1

deny contains {
	"code": "policy.outputs",
	"message": sprintf(
		"the release plan may let out %v bytes, and the agreement grants %v",
		[told(["job", "outputs", "bytes"]), told(["agreement", "max_output_bytes"])],
	),
	"fix": "Release fewer tensors, a smaller dtype, or metrics only.",
} if {
	not bytes_granted
}

deny contains {
	"code": "policy.outputs",
	"message": sprintf("weights may not be released as %v", [told(["job", "outputs", "release_dtype"])]),
	"fix": "Set `release_dtype` to one with fewer bits, such as bf16, or release metrics only.",
} if {
	not dtype_granted
}

outputs_within if {
	bytes_granted
	dtype_granted
}

bytes_granted if {
	is_number(input.job.outputs.bytes)
	is_number(input.agreement.max_output_bytes)
	is_number(data.outputs.max_bytes)
	input.job.outputs.bytes <= input.agreement.max_output_bytes
	input.job.outputs.bytes <= data.outputs.max_bytes
}

dtype_granted if {
	input.job.outputs.has_weights == false
	input.job.outputs.release_dtype == null
}

# The low bits of f32 are a covert channel that costs a model nothing (guard, step 4).
dtype_granted if {
	input.job.outputs.has_weights == true
	input.job.outputs.release_dtype in data.outputs.release_dtypes
}
