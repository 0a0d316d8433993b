# A job has no network. The sandbox holds that; the rule answers a document that claims otherwise.
package rapha.admission

import rego.v1

deny contains {
	"code": "policy.network",
	"message": "the job asks for a network",
	"fix": "Remove it; there is none.",
} if {
	not network_absent
}

network_absent if input.job.network == false
