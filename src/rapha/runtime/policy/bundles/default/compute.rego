# GPU memory isn't known to be scrubbed between jobs, so none is offered unless the policy says so.
package rapha.admission

import rego.v1

deny contains {
	"code": "policy.compute",
	"message": sprintf("the job asks for %v GPU(s), more than the policy offers", [told(["job", "compute", "gpus"])]),
	"fix": "Lower `compute.gpus`.",
} if {
	not compute_within
}

compute_within if {
	is_number(input.job.compute.gpus)
	is_number(data.compute.max_gpus)
	input.job.compute.gpus <= data.compute.max_gpus
}
