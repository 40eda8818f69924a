package head

import (
	"context"
	"math"
	"slices"
	"strconv"

	"fedstream/client/internal/codec"
	"fedstream/client/internal/fault"
	"fedstream/client/internal/model"
	"fedstream/client/internal/task"
)

const (
	kernelName = "head/kernel"
	biasName   = "head/bias"

	defaultAdamEpsilon = 1e-3
)

// Task is brain_mri_head.
type Task struct{}

// Name is how federations call it.
func (Task) Name() string { return "brain_mri_head" }

// Open reads a features file.
func (Task) Open(settings map[string]string, dataPath string) (task.Training, error) {
	read, err := readFeatures(dataPath)
	if err != nil {
		return nil, err
	}
	if read.train.num() == 0 {
		return nil, fault.Stopf(fault.BadData, "%s has no training example", dataPath)
	}
	epsilon := defaultAdamEpsilon
	if text, given := settings["adam_epsilon"]; given {
		if epsilon, err = strconv.ParseFloat(text, 64); err != nil {
			return nil, fault.Stopf(fault.Declined,
				"the federation's setting adam_epsilon is %q, which is no number", text)
		}
	}
	return &training{read, epsilon, settings["class_weights"] == "balanced"}, nil
}

type training struct {
	*features
	adamEpsilon float64
	isBalanced  bool
}

func (t *training) Schema() []model.Spec {
	spec := func(name string, shape ...uint64) model.Spec {
		return model.Spec{Name: name, DType: "F32", Shape: shape, Trainable: true, Role: "weight"}
	}
	return []model.Spec{spec(kernelName, uint64(t.train.width), 1), spec(biasName, 1)}
}

func (t *training) Meaning() model.Meaning { return t.meaning }

func (t *training) NumExamples() uint64 { return uint64(t.train.num()) }

func (t *training) IsSynthetic() bool { return t.isGenerated }

// FineTune ends, with patience and validation examples, in the epoch of the lowest validation loss.
func (t *training) FineTune(
	ctx context.Context, base map[string][]byte, plan task.Plan, report func(task.Progress),
) (task.Tuned, error) {
	head := newHead(base, t.adamEpsilon)
	weights := [2]float64{1, 1}
	if t.isBalanced {
		weights = balanced(t.train.y)
	}
	baseScores := head.scores(t.val, "base_")
	patience := plan.Patience
	if t.val.num() == 0 {
		patience = 0
	}
	best := struct {
		loss    float64
		epoch   uint32
		metrics task.Metrics
		weights []float64
	}{loss: math.Inf(1), weights: slices.Clone(head.weights)}
	epoch := uint32(0)
	for epoch < plan.Epochs && (patience == 0 || epoch-best.epoch < patience) {
		epoch++
		metrics, err := head.epoch(ctx, t.train, plan, weights, epoch, report)
		if err != nil {
			return task.Tuned{}, err
		}
		merge(metrics, head.scores(t.val, "val_"))
		share := float32(epoch) / float32(plan.Epochs)
		report(task.Progress{Epoch: epoch, Epochs: plan.Epochs, Fraction: share, Metrics: metrics})
		if best.epoch == 0 { // also where no loss will be a number
			best.metrics = metrics
		}
		if patience == 0 {
			best.epoch, best.metrics, best.weights = epoch, metrics, slices.Clone(head.weights)
		} else if loss := *metrics["val_loss"]; loss < best.loss {
			best.loss, best.epoch, best.metrics, best.weights = loss, epoch, metrics, slices.Clone(head.weights)
		}
	}
	merge(best.metrics, baseScores)
	return task.Tuned{Weights: tensors(best.weights), NumExamples: t.NumExamples(), Metrics: best.metrics, Epochs: epoch}, nil
}

func merge(into, from task.Metrics) {
	for name, value := range from {
		into[name] = value
	}
}

func tensors(weights []float64) map[string][]byte {
	rounded := make([]float32, len(weights))
	for i, value := range weights {
		rounded[i] = float32(value)
	}
	last := len(rounded) - 1
	return map[string][]byte{kernelName: codec.Bytes(rounded[:last]), biasName: codec.Bytes(rounded[last:])}
}
