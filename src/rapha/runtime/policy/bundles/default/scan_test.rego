package rapha.admission_test

import rego.v1

import data.rapha.admission

codes := {reason.code | some reason in admission.deny}

test_allow_no_finding if {
	admission.allow with input.scan.findings as []
}

test_allow_warning if {
	admission.allow with input.scan.findings as [{"rule": "image.subprocess", "severity": "warn"}]
}

test_allow_waived_rule if {
	admission.allow with input.scan.findings as [{"rule": "image.native_code", "severity": "refuse"}]
		with data.scan.waived_rules as ["image.native_code"]
}

test_deny_refusing_finding if {
	codes == {"policy.scan"} with input.scan.findings as [
		{"rule": "image.subprocess", "severity": "warn"},
		{"rule": "image.network_module", "severity": "refuse"},
	]
}

test_deny_refused_rule if {
	codes == {"policy.scan"} with data.scan.refused_rules as ["image.network_module"]
}

test_deny_unknown_severity if {
	codes == {"policy.scan"} with input.scan.findings as [{"rule": "image.new", "severity": "fatal"}]
}

test_deny_no_severity if {
	codes == {"policy.scan"} with input.scan.findings as [{"rule": "image.new"}]
}

test_deny_no_report if {
	codes == {"policy.scan"} with input.scan.findings as null
}
