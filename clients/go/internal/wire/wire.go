// Package wire stands between the contract's messages and the client's own types. What is read is checked here, before
// it is used or anything is allocated for it.
package wire

import (
	"maps"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"fedstream/client/internal/fault"
	"fedstream/client/internal/limits"
	"fedstream/client/internal/model"
	"fedstream/client/internal/pb"
	"fedstream/client/internal/task"
)

// ReadDigest reads a digest; its SHA-256 must be one.
func ReadDigest(digest *pb.Digest) (model.Digest, error) {
	if len(digest.GetSha256()) != len(model.SHA256{}) {
		return model.Digest{}, fault.Malformedf(fault.InvalidRequest,
			"a digest has a sha256 of %d bytes, not of 32", len(digest.GetSha256()))
	}
	return model.Digest{SHA256: model.SHA256(digest.GetSha256()), Size: digest.GetSizeBytes()}, nil
}

// WriteDigest writes a digest.
func WriteDigest(digest model.Digest) *pb.Digest {
	return &pb.Digest{Sha256: digest.SHA256[:], SizeBytes: digest.Size}
}

// ReadMeaning reads a meaning.
func ReadMeaning(message *pb.TaskMeaning) (model.Meaning, error) {
	sound := len(message.GetClassNames()) <= limits.MaxClassNames &&
		limits.IsText(message.GetPositiveClass(), 0, limits.MaxClassNameBytes) &&
		limits.IsText(message.GetPreprocessing(), 0, limits.MaxPreprocessingBytes)
	for _, name := range message.GetClassNames() {
		sound = sound && limits.IsText(name, 1, limits.MaxClassNameBytes)
	}
	if !sound {
		return model.Meaning{}, fault.Malformedf(fault.InvalidRequest, "a meaning is out of its bounds")
	}
	return model.Meaning{
		ClassNames:    message.GetClassNames(),
		PositiveClass: message.GetPositiveClass(),
		Preprocessing: message.GetPreprocessing(),
	}, nil
}

// WriteMeaning writes a meaning.
func WriteMeaning(meaning model.Meaning) *pb.TaskMeaning {
	return &pb.TaskMeaning{
		ClassNames: meaning.ClassNames, PositiveClass: meaning.PositiveClass, Preprocessing: meaning.Preprocessing,
	}
}

// ReadPlan reads a plan that a client can carry out.
func ReadPlan(message *pb.Plan) (task.Plan, error) {
	rate := message.GetLearningRate()
	sound := message.GetEpochs() > 0 && message.GetBatchSize() > 0 && !math.IsNaN(rate) && !math.IsInf(rate, 0) &&
		len(message.GetSettings()) <= limits.MaxPlanSettings
	for key, value := range message.GetSettings() {
		sound = sound && len(key) <= limits.MaxPlanSettingBytes && len(value) <= limits.MaxPlanSettingBytes
	}
	if !sound {
		return task.Plan{}, fault.Malformedf(fault.InvalidRequest, "the plan is out of its bounds")
	}
	return task.Plan{
		Epochs:       message.GetEpochs(),
		BatchSize:    message.GetBatchSize(),
		LearningRate: rate,
		Patience:     message.GetEarlyStoppingPatience(),
		Seed:         message.GetSeed(),
		Settings:     message.GetSettings(),
	}, nil
}

// ReadIndexes reads ascending indexes below count.
func ReadIndexes(indexes []uint32, count int) ([]int, error) {
	read := make([]int, 0, min(len(indexes), count))
	for i, index := range indexes {
		if int64(index) >= int64(count) || i > 0 && index <= indexes[i-1] {
			return nil, fault.Malformedf(fault.InvalidRequest,
				"tensor indexes do not ascend, or are not in the manifest")
		}
		read = append(read, int(index))
	}
	return read, nil
}

// ReadMetrics reads metrics; those without a finite value are nil.
func ReadMetrics(messages []*pb.Metric) (task.Metrics, error) {
	if len(messages) > limits.MaxMetrics {
		return nil, fault.Malformedf(fault.InvalidRequest, "%d metrics are too many", len(messages))
	}
	metrics := task.Metrics{}
	for _, message := range messages {
		if !limits.IsText(message.GetName(), 1, limits.MaxMetricNameBytes) {
			return nil, fault.Malformedf(fault.InvalidRequest, "a metric's name is out of its bounds")
		}
		metrics[message.GetName()] = task.Finite(message.Value)
	}
	return metrics, nil
}

// WriteMetrics writes metrics by name, as many as may travel.
func WriteMetrics(metrics task.Metrics) []*pb.Metric {
	var written []*pb.Metric
	for _, name := range slices.Sorted(maps.Keys(metrics)) {
		if len(written) == limits.MaxMetrics {
			break
		}
		metric := &pb.Metric{Name: name, Value: task.Finite(metrics[name])}
		if metric.Value == nil {
			metric.UndefinedReason = "not a finite number"
		}
		written = append(written, metric)
	}
	return written
}

// ReadDuration reads a span; what is none, or below nothing, is 0.
func ReadDuration(span *durationpb.Duration) time.Duration {
	if span == nil || !span.IsValid() {
		return 0
	}
	return max(span.AsDuration(), 0)
}

// WriteDuration writes a span; none for 0.
func WriteDuration(span time.Duration) *durationpb.Duration {
	if span <= 0 {
		return nil
	}
	return durationpb.New(span)
}
