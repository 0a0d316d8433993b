# Every finding of the scanner is of a severity that the policy accepts, or of a rule that it waives.
package rapha.admission

import rego.v1

deny contains {
	"code": "policy.scan",
	"message": concat(" ", ["these findings of the scanner are not acceptable:", concat(", ", sort(unacceptable))]),
	"fix": "Run `rapha scan` on the image and correct what it lists.",
} if {
	count(unacceptable) > 0
}

deny contains {
	"code": "policy.scan",
	"message": "there is no readable report of the scanner",
	"fix": "Scan the image again.",
} if {
	not report_readable
}

scan_acceptable if {
	report_readable
	every finding in input.scan.findings {
		acceptable(finding)
	}
}

report_readable if {
	is_string(input.scan.digest)
	is_array(input.scan.findings)
}

acceptable(finding) if {
	finding.severity in data.scan.accepted_severities
	not finding.rule in data.scan.refused_rules
}

acceptable(finding) if finding.rule in data.scan.waived_rules

unacceptable contains name if {
	some finding in input.scan.findings
	not acceptable(finding)
	name := object.get(finding, "rule", "unnamed")
}
