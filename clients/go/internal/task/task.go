// Package task says what a model has to offer to be trained in a federation. `head` is one; a program that embeds this
// client brings its own.
package task

import (
	"context"
	"math"

	"fedstream/client/internal/model"
)

// A Task is known to a federation by its name.
type Task interface {
	Name() string
	// Open reads the site's data. The settings are the task's, from the server; they never name code.
	Open(settings map[string]string, dataPath string) (Training, error)
}

// A Training is a task with a site's data.
type Training interface {
	Schema() []model.Spec
	Meaning() model.Meaning
	NumExamples() uint64
	IsSynthetic() bool
	// FineTune trains from base, each tensor's values raw, by name. The same base, plan and data give the same bytes.
	// It returns ctx's error soon after ctx has ended.
	FineTune(ctx context.Context, base map[string][]byte, plan Plan, report func(Progress)) (Tuned, error)
}

// A Plan has the hyper-parameters of one fine-tune.
type Plan struct {
	Epochs       uint32
	BatchSize    uint32
	LearningRate float64
	Patience     uint32 // epochs without a better validation loss after which to stop; 0 for never
	Seed         uint64
	Settings     map[string]string
}

// Progress says how far a fine-tune is; Fraction is 0 to 1.
type Progress struct {
	Epoch    uint32
	Epochs   uint32
	Fraction float32
	Metrics  Metrics
}

// Tuned is what a fine-tune gives.
type Tuned struct {
	Weights     map[string][]byte
	NumExamples uint64
	Metrics     Metrics
	Epochs      uint32
}

// Metrics have values by name; nil where a metric is undefined.
type Metrics map[string]*float64

// Finite gives the value if it is a number that may travel, else nil.
func Finite(value *float64) *float64 {
	if value == nil || math.IsNaN(*value) || math.IsInf(*value, 0) {
		return nil
	}
	return value
}
