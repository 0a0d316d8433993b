# The purpose is one that the agreement names, letter for letter: `research` does not cover `research/x`.
package rapha.admission

import rego.v1

deny contains {
	"code": "policy.purpose",
	"message": sprintf(
		"agreement %v does not name the purpose %v",
		[told(["agreement", "id"]), told(["job", "purpose"])],
	),
	"fix": "Use a purpose that the agreement names.",
} if {
	not purpose_agreed
}

purpose_agreed if input.job.purpose in input.agreement.purposes
