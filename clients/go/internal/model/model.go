// Package model has schemas, models and meanings, their canonical descriptions and digests.
package model

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// SHA256 names bytes.
type SHA256 [sha256.Size]byte

// Sum gives the name of these bytes.
func Sum(data []byte) SHA256 { return sha256.Sum256(data) }

// String gives 64 lower-case hexadecimal digits.
func (s SHA256) String() string { return hex.EncodeToString(s[:]) }

// MarshalText writes hexadecimal digits, in JSON too.
func (s SHA256) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads hexadecimal digits.
func (s *SHA256) UnmarshalText(text []byte) error {
	data, err := hex.DecodeString(string(text))
	if err == nil && len(data) != len(s) {
		err = errors.New("a SHA-256 has 32 bytes")
	}
	copy(s[:], data)
	return err
}

// ItemBytes is the size of one element, by the canonical name of its type.
var ItemBytes = map[string]uint64{
	"BOOL": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "U8": 1, "U16": 2, "U32": 4, "U64": 8,
	"F16": 2, "BF16": 2, "F32": 4, "F64": 8,
}

// A Spec is one tensor of a schema. DType is a canonical name such as F32; Role is weight or statistic.
type Spec struct {
	Name      string
	DType     string
	Shape     []uint64
	Trainable bool
	Role      string
}

// An Entry is one tensor of a model: its values' digest and size, raw.
type Entry struct {
	Name   string   `json:"name"`
	DType  string   `json:"dtype"`
	Shape  []uint64 `json:"shape"`
	SHA256 SHA256   `json:"sha256"`
	Size   uint64   `json:"size"`
}

// A Digest names a model: the SHA-256 of its canonical description, and that text's size.
type Digest struct {
	SHA256 SHA256
	Size   uint64
}

// A Meaning says what classes and inputs mean.
type Meaning struct {
	ClassNames    []string `json:"class_names"`
	PositiveClass string   `json:"positive_class"`
	Preprocessing string   `json:"preprocessing"`
}

// EntryOf gives the entry of a tensor with these values.
func EntryOf(spec Spec, values []byte) Entry {
	return Entry{spec.Name, spec.DType, spec.Shape, Sum(values), uint64(len(values))}
}

// IsOf says whether the entry has the name, type and shape of spec.
func (e Entry) IsOf(spec Spec) bool {
	return e.Name == spec.Name && e.DType == spec.DType && slices.Equal(e.Shape, spec.Shape)
}

// SizeOf gives the bytes of a tensor's values, raw; false if they are more than 64 bits hold, or the type is unknown.
func SizeOf(dtype string, shape []uint64) (uint64, bool) {
	size, known := ItemBytes[dtype]
	if !known {
		return 0, false
	}
	for _, length := range shape {
		high, low := bits.Mul64(size, length)
		if high != 0 {
			return 0, false
		}
		size = low
	}
	return size, true
}

// CanonicalModel is the text whose digest names the model of these entries.
func CanonicalModel(entries []Entry) string {
	rows := [][]string{{"fedstream model v1"}}
	for _, entry := range entries {
		rows = append(rows, []string{entry.Name, entry.DType, shapeText(entry.Shape), entry.SHA256.String()})
	}
	return lines(rows)
}

// DigestOf gives the digest that names a model.
func DigestOf(entries []Entry) Digest {
	text := []byte(CanonicalModel(entries))
	return Digest{Sum(text), uint64(len(text))}
}

// CanonicalSchema is the text whose SHA-256 is the schema digest.
func CanonicalSchema(specs []Spec) string {
	rows := [][]string{{"fedstream schema v1"}}
	for _, spec := range specs {
		kind := "frozen"
		if spec.Trainable {
			kind = "trainable"
		}
		rows = append(rows, []string{spec.Name, spec.DType, shapeText(spec.Shape), kind, spec.Role})
	}
	return lines(rows)
}

// CanonicalMeaning is the text of a meaning as features files hold it.
func CanonicalMeaning(meaning Meaning) string {
	return lines([][]string{
		{"fedstream meaning v1"}, meaning.ClassNames, {meaning.PositiveClass}, {meaning.Preprocessing},
	})
}

// ParseMeaning gives the meaning of which text is the canonical description.
func ParseMeaning(text string) (Meaning, error) {
	rows := strings.Split(text, "\n")
	if len(rows) != 5 {
		return Meaning{}, fmt.Errorf("a meaning has 4 lines, and this has %d", len(rows)-1)
	}
	meaning := Meaning{[]string{}, rows[2], rows[3]}
	if rows[1] != "" {
		meaning.ClassNames = strings.Split(rows[1], "\t")
	}
	if CanonicalMeaning(meaning) != text {
		return Meaning{}, errors.New("this is no canonical description of a meaning")
	}
	return meaning, nil
}

func shapeText(shape []uint64) string {
	lengths := make([]string, len(shape))
	for i, length := range shape {
		lengths[i] = strconv.FormatUint(length, 10)
	}
	return strings.Join(lengths, ",")
}

func lines(rows [][]string) string {
	var text strings.Builder
	for _, row := range rows {
		text.WriteString(strings.Join(row, "\t"))
		text.WriteByte('\n')
	}
	return text.String()
}
