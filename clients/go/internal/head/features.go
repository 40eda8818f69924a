// Package head is the task `brain_mri_head`: the last layer of the brain MRI model, on features of the frozen backbone.
package head

import (
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"

	"fedstream/client/internal/codec"
	"fedstream/client/internal/fault"
	"fedstream/client/internal/model"
)

const (
	magic       = "FSFEAT01"
	headerBytes = 28
)

// examples have their features row after row.
type examples struct {
	x     []float32
	y     []uint8
	width int
}

func (e examples) num() int { return len(e.y) }

func (e examples) row(i int) []float32 { return e.x[i*e.width : (i+1)*e.width] }

// take gives the examples for which chosen is true.
func (e examples) take(chosen func(i int) bool) examples {
	taken := examples{width: e.width}
	for i, label := range e.y {
		if chosen(i) {
			taken.x, taken.y = append(taken.x, e.row(i)...), append(taken.y, label)
		}
	}
	return taken
}

type features struct {
	train, val  examples
	meaning     model.Meaning
	isGenerated bool
}

// readFeatures reads a features file in the plain form, or the one in a folder; numbers are little-endian:
//
//	8  `FSFEAT01`          4  training examples    4  validation examples    4  d    4  1 for generated data
//	4  m                   m  the task's meaning   n  labels, uint8          n * d * 4  features, float32
func readFeatures(path string) (*features, error) {
	if facts, err := os.Stat(path); err == nil && facts.IsDir() {
		path = filepath.Join(path, "features.features")
	}
	content, err := os.ReadFile(path)
	if err == nil {
		var read *features
		if read, err = parse(content); err == nil {
			return read, nil
		}
	}
	return nil, fault.Stopf(fault.BadData, "%s is no features file: %v; `fedclient features` makes one", path, err)
}

func parse(content []byte) (*features, error) {
	if len(content) < headerBytes || string(content[:len(magic)]) != magic {
		return nil, errors.New("its beginning is wrong")
	}
	number := func(at int) uint64 { return uint64(binary.LittleEndian.Uint32(content[at:])) }
	numTrain, numVal, width, meaningBytes := number(8), number(12), number(16), number(24)
	num, labelsAt := numTrain+numVal, headerBytes+meaningBytes
	if width >= 1<<28 || num*width >= 1<<60 || uint64(len(content)) != labelsAt+num+4*num*width {
		return nil, errors.New("its length is wrong")
	}
	y, x := content[labelsAt:labelsAt+num], codec.Floats(content[labelsAt+num:])
	for _, label := range y {
		if label > 1 {
			return nil, errors.New("it has labels other than 0 and 1")
		}
	}
	for _, value := range x {
		if math.IsNaN(float64(value)) || math.IsInf(float64(value), 0) {
			return nil, errors.New("it has features that are no finite numbers")
		}
	}
	meaning, err := model.ParseMeaning(string(content[headerBytes:labelsAt]))
	if err != nil {
		return nil, err
	}
	train := examples{x[:numTrain*width], y[:numTrain], int(width)}
	val := examples{x[numTrain*width:], y[numTrain:], int(width)}
	return withValidation(&features{train, val, meaning, number(20) == 1}), nil
}

// One example in seven validates where a file has none for it, as in fedtask.
const valEvery = 7

// withValidation splits validation examples off, by label and place, where the file has none and there are enough.
func withValidation(read *features) *features {
	every := read.train
	if read.val.num() > 0 || every.num() < 2*valEvery {
		return read
	}
	inVal := make([]bool, every.num())
	place := 0
	for label := range uint8(2) {
		for i, own := range every.y {
			if own != label {
				continue
			}
			place++
			inVal[i] = place%valEvery == 0
		}
	}
	read.train = every.take(func(i int) bool { return !inVal[i] })
	read.val = every.take(func(i int) bool { return inVal[i] })
	return read
}
