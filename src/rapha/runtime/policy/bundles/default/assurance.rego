# The node's evidence is as strong as the job, the agreement and the profile ask for.
package rapha.admission

import rego.v1

assurance_rank := {"none": 0, "simulated": 1, "tpm": 2, "tee": 3, "tee+tpm": 4}

deny contains {
	"code": "policy.assurance",
	"message": sprintf(
		"the node's assurance is %v; the job accepts %v, the agreement %v, and the node's profile is %v",
		[
			told(["node", "assurance"]), told(["job", "assurance"]),
			told(["agreement", "least_assurance"]), told(["node", "profile"]),
		],
	),
	"fix": "Accept this assurance in the job where the agreement does too, or use a node with stronger evidence.",
} if {
	not assurance_enough
}

assurance_enough if {
	have := assurance_rank[input.node.assurance]
	have >= assurance_rank[input.job.assurance]
	have >= assurance_rank[input.agreement.least_assurance]
	have >= assurance_floor
}

assurance_floor := assurance_rank[data.assurance.demo] if input.node.profile == "demo"

assurance_floor := assurance_rank[data.assurance.production] if {
	input.node.profile == "production"
	data.assurance.waiver == null
}

# A waiver lowers the floor of production to one kind of hardware, never to a simulated one.
assurance_floor := assurance_rank[data.assurance.waiver] if {
	input.node.profile == "production"
	data.assurance.waiver in {"tee", "tpm"}
}
