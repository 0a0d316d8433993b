package rapha.admission_test

import rego.v1

import data.rapha.admission

codes := {reason.code | some reason in admission.deny}

test_allow_exact_budget if {
	admission.allow with input.job.budget_max as "250"
}

test_allow_free_without_budget if {
	admission.allow with input.job.budget_max as null
		with input.agreement.price_per_record as "0"
		with input.dataset.price_per_record as "0.00"
		with input.settlement_configured as false
}

test_deny_one_millionth_short if {
	codes == {"budget.max"} with input.job.budget_max as "249.999999"
}

test_deny_short_beyond_float if {
	codes == {"budget.max"} with input.job.budget_max as "999999999000000.999999"
		with input.agreement.price_per_record as "999999.999000001"
		with input.job.dataset.max_records as 1000000000
}

test_deny_dearer_manifest if {
	codes == {"budget.max"} with input.dataset.price_per_record as "0.06"
}

test_deny_no_budget if {
	codes == {"budget.required"} with input.job.budget_max as null
}

test_deny_no_vault if {
	codes == {"budget.no_settlement"} with input.settlement_configured as false
}

test_deny_negative if {
	not admission.allow with input.agreement.price_per_record as "-1"
		with input.dataset.price_per_record as "-1"
}
