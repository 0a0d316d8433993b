# The job is of a kind that is offered here, and an evaluation lets out nothing but the node's own numbers.
package rapha.admission

import rego.v1

deny contains {
	"code": "policy.kind",
	"message": sprintf("jobs of kind %v are not run here", [told(["job", "kind"])]),
	"fix": "Use a kind of job that the hospital's policy lists.",
} if {
	not kind_offered
}

deny contains {
	"code": "policy.outputs",
	"message": "an evaluation releases trusted metrics and nothing else",
	"fix": "Take weights and self-reported values out of the release plan; the model is yours already.",
} if {
	not outputs_of_kind
}

kind_within if {
	kind_offered
	outputs_of_kind
}

kind_offered if {
	is_string(input.job.kind)
	input.job.kind in data.kinds
}

outputs_of_kind if {
	is_string(input.job.kind)
	input.job.kind != "evaluate"
}

outputs_of_kind if {
	input.job.kind == "evaluate"
	input.job.outputs.has_weights == false
	input.job.outputs.parameters == 0
	input.job.outputs.self_reported == 0
	count(input.job.outputs.trusted_metrics) > 0
}
