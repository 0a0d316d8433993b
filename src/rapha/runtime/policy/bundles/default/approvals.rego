# The owners' signatures that the agreement asks for are at least what the policy asks for.
package rapha.admission

import rego.v1

deny contains {
	"code": "policy.agreement",
	"message": sprintf("the agreement asks for %v approval(s), fewer than the policy does", [told(["approvals_required"])]),
	"fix": "Have both parties sign an agreement that asks for more approvers.",
} if {
	not approvals_enough
}

approvals_enough if {
	is_number(input.approvals_required)
	is_number(data.approvals[input.node.profile])
	input.approvals_required >= data.approvals[input.node.profile]
}
