# The dataset is the one that the job asks for, and the agreement names it.
package rapha.admission

import rego.v1

deny contains {
	"code": "policy.dataset",
	"message": sprintf(
		"profile %v with modality %v is not dataset %v, or agreement %v does not name that dataset",
		[
			told(["job", "dataset", "profile"]), told(["job", "dataset", "modality"]),
			told(["dataset", "id"]), told(["agreement", "id"]),
		],
	),
	"fix": "Use profile and modality of a catalogue entry that the agreement names.",
} if {
	not dataset_offered
}

dataset_offered if {
	input.job.dataset.profile == input.dataset.profile
	input.job.dataset.modality == input.dataset.modality
	input.dataset.id in input.agreement.datasets
}
