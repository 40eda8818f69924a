package work

import (
	"maps"
	"testing"

	"fedstream/client/internal/task"
)

func TestProgressIsNotWhatTrainingGoesOnWith(t *testing.T) {
	job := newJob(Offer{}, nil, nil)
	value := 1.0
	metrics := task.Metrics{"loss": &value}
	job.show(Progress{Progress: task.Progress{Metrics: metrics}})
	metrics["accuracy"] = &value // in a race with whoever tells the server, if it were the same
	if shown, _ := job.Progress(); !maps.Equal(shown.Metrics, task.Metrics{"loss": &value}) {
		t.Errorf("shows %v", shown.Metrics)
	}
}
