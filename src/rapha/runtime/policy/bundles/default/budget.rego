# A price needs a budget that covers it, and a vault that can pay it.
package rapha.admission

import rego.v1

deny contains {
	"code": "budget.required",
	"message": sprintf("records cost %v each and the job has no budget", [told(["dataset", "price_per_record"])]),
	"fix": "Add `budget` to the job.",
} if {
	not free
	not budget_given
}

deny contains {
	"code": "budget.no_settlement",
	"message": sprintf(
		"records cost %v each and no vault is configured to pay them",
		[told(["dataset", "price_per_record"])],
	),
	"fix": "The operator configures settlement.",
} if {
	not free
	not input.settlement_configured == true
}

deny contains {
	"code": "budget.max",
	"message": sprintf(
		"%v records at %v may cost more than the budget of %v",
		[
			told(["job", "dataset", "max_records"]), told(["dataset", "price_per_record"]),
			told(["job", "budget_max"]),
		],
	),
	"fix": "Raise `budget.max` or lower `max_records`.",
} if {
	not free
	budget_given
	not budget_covers
}

budget_enough if free

budget_enough if {
	input.settlement_configured == true
	budget_covers
}

free if price == 0

budget_given if is_string(input.job.budget_max)

budget_covers if {
	is_number(input.job.dataset.max_records)
	price * input.job.dataset.max_records <= micros(input.job.budget_max)
}

# Millionths of the currency. Where agreement and manifest differ, the dearer price must be covered.
price := max({micros(input.agreement.price_per_record), micros(input.dataset.price_per_record)})

# A decimal string as an integer number of millionths: floats lose cents from 2^53 millionths on. The
# leading 1 keeps "05" from being read as a number with a leading zero.
micros(amount) := (to_number(parts[0]) * 1000000) + (to_number(concat("", ["1", fraction])) - 1000000) if {
	regex.match(`^(0|[1-9][0-9]*)([.][0-9]{1,6})?$`, amount)
	parts := split(concat("", [amount, "."]), ".")
	fraction := substring(concat("", [parts[1], "000000"]), 0, 6)
}
