package rapha.admission_test

import rego.v1

import data.rapha.admission

codes := {reason.code | some reason in admission.deny}

test_allow_named_dataset if {
	admission.allow with input.agreement.datasets as ["other", "breast-fna"]
}

test_deny_other_profile if {
	codes == {"policy.dataset"} with input.job.dataset.profile as "tabular.other"
}

test_deny_other_modality if {
	codes == {"policy.dataset"} with input.job.dataset.modality as "dicom"
}

test_deny_unnamed_dataset if {
	codes == {"policy.dataset"} with input.agreement.datasets as ["other"]
}

test_deny_no_dataset if {
	codes == {"policy.dataset"} with input.agreement.datasets as []
}
