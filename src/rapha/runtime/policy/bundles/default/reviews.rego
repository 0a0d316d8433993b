# The output reviewers' signatures that the agreement asks for are at least what the policy asks for.
package rapha.admission

import rego.v1

deny contains {
	"code": "policy.agreement",
	"message": sprintf("the agreement asks for %v review(s), fewer than the policy does", [told(["reviews_required"])]),
	"fix": "Have both parties sign an agreement that asks for more output reviewers.",
} if {
	not reviews_enough
}

reviews_enough if {
	is_number(input.reviews_required)
	is_number(data.reviews[input.node.profile])
	input.reviews_required >= data.reviews[input.node.profile]
}
