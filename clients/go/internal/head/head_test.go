package head

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"fedstream/client/internal/codec"
	"fedstream/client/internal/task"
)

const meaningText = "fedstream meaning v1\nno\tyes\nyes\n2 numbers\n"

var plan = task.Plan{Epochs: 20, BatchSize: 8, LearningRate: 0.1, Seed: 3}

// file makes a features file of two clouds of two numbers.
func file(numTrain, numVal int, distance float32) []byte {
	content := []byte(magic)
	for _, number := range []int{numTrain, numVal, 2, 1, len(meaningText)} {
		content = binary.LittleEndian.AppendUint32(content, uint32(number))
	}
	content = append(content, meaningText...)
	var x []float32
	for i := range numTrain + numVal {
		content = append(content, byte(i%2))
		middle := distance * float32(2*(i%2)-1)
		for at := range 2 {
			x = append(x, middle+float32(math.Sin(float64(37*(2*i+at)))))
		}
	}
	return append(content, codec.Bytes(x)...)
}

func opened(t *testing.T, content []byte) task.Training {
	t.Helper()
	path := filepath.Join(t.TempDir(), "site.features")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	training, err := Task{}.Open(map[string]string{"adam_epsilon": "0.001"}, path)
	if err != nil {
		t.Fatal(err)
	}
	return training
}

func tune(t *testing.T, training task.Training, plan task.Plan) task.Tuned {
	t.Helper()
	base := map[string][]byte{kernelName: make([]byte, 8), biasName: make([]byte, 4)}
	tuned, err := training.FineTune(t.Context(), base, plan, func(task.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	return tuned
}

func TestPlainFormReadsAsDocumented(t *testing.T) {
	read, err := parse(file(20, 4, 1))
	if err != nil {
		t.Fatal(err)
	}
	if read.train.num() != 20 || read.val.num() != 4 || read.meaning.PositiveClass != "yes" || !read.isGenerated {
		t.Errorf("read as %+v", read)
	}
}

func TestUnsoundFeaturesAreRefused(t *testing.T) {
	sound := file(3, 0, 1)
	changed := func(at int, to byte) []byte {
		content := bytes.Clone(sound)
		content[at] = to
		return content
	}
	for what, content := range map[string][]byte{
		"nothing":                {},
		"a byte missing":         sound[:len(sound)-1],
		"a byte more":            append(bytes.Clone(sound), 0),
		"another beginning":      changed(0, 'X'),
		"a huge number of rows":  changed(11, 0xFF),
		"a huge width":           changed(19, 0xFF),
		"a meaning that is none": changed(30, '\n'),
		"a label of 2":           changed(headerBytes+len(meaningText), 2),
		"a feature without end":  append(bytes.Clone(sound[:len(sound)-4]), 0, 0, 0x80, 0x7f),
	} {
		if _, err := parse(content); err == nil {
			t.Errorf("taken with %s", what)
		}
	}
}

func TestValidationExamplesAreSplitOffAsFedtaskDoes(t *testing.T) {
	read, err := parse(file(30, 0, 1))
	if err != nil {
		t.Fatal(err)
	}
	if read.train.num() != 26 || !reflect.DeepEqual(read.val.y, []uint8{1, 0, 1, 0}) {
		t.Errorf("%d remain, and %v are split off", read.train.num(), read.val.y)
	}
}

func TestOrderOfAnEpochIsThatOfFedtask(t *testing.T) {
	if order := epochOrder(7, 1, 5); !reflect.DeepEqual(order, []int{0, 1, 4, 3, 2}) {
		t.Error(order)
	}
}

func TestBatchesAreOfNearlyEqualSize(t *testing.T) {
	if parts := batches([]int{1, 2, 3, 4, 5, 6, 7}, 3); !reflect.DeepEqual(parts, [][]int{{1, 2, 3}, {4, 5}, {6, 7}}) {
		t.Error(parts)
	}
}

func TestFineTuneLearnsAndRepeatsToTheBit(t *testing.T) {
	training := opened(t, file(40, 10, 1))
	one, two := tune(t, training, plan), tune(t, training, plan)
	if *one.Metrics["accuracy"] < 0.9 || *one.Metrics["val_loss"] >= *one.Metrics["base_loss"] {
		t.Errorf("learned %v of it", *one.Metrics["accuracy"])
	}
	other := plan
	other.Seed = 4
	if !reflect.DeepEqual(one, two) || reflect.DeepEqual(one.Weights, tune(t, training, other).Weights) {
		t.Error("what is drawn at random is not by the seed")
	}
}

func TestFineTuneEndsEarlyAndGivesTheBestEpoch(t *testing.T) {
	training := opened(t, file(40, 10, 0.1))
	early := plan
	early.Epochs, early.Patience = 500, 2
	tuned := tune(t, training, early)
	if tuned.Epochs >= 500 {
		t.Errorf("%d epochs", tuned.Epochs)
	}
	early.Epochs, early.Patience = tuned.Epochs-2, 0
	if best := tune(t, training, early); *best.Metrics["val_loss"] != *tuned.Metrics["val_loss"] {
		t.Errorf("gave a loss of %v, not %v", *tuned.Metrics["val_loss"], *best.Metrics["val_loss"])
	}
}

func TestFineTuneStopsWhenItIsTold(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	base := map[string][]byte{kernelName: make([]byte, 8), biasName: make([]byte, 4)}
	_, err := opened(t, file(40, 10, 1)).FineTune(ctx, base, plan, func(task.Progress) {})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
