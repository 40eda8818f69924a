package safetensors_test

import (
	"bytes"
	"testing"

	"fedstream/client/internal/model"
	"fedstream/client/internal/safetensors"
)

func TestModelIsWrittenByteForByte(t *testing.T) {
	values := map[model.SHA256][]byte{}
	var entries []model.Entry
	for _, spec := range []model.Spec{{Name: "a", DType: "F32", Shape: []uint64{1}}, {Name: "b", DType: "U8"}} {
		size, _ := model.SizeOf(spec.DType, spec.Shape)
		data := bytes.Repeat([]byte{byte(size)}, int(size))
		entry := model.EntryOf(spec, data)
		values[entry.SHA256] = data
		entries = append(entries, entry)
	}
	var written bytes.Buffer
	read := func(name model.SHA256) ([]byte, error) { return values[name], nil }
	if err := safetensors.Write(&written, entries, read); err != nil {
		t.Fatal(err)
	}
	header := `{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[],"data_offsets":[4,5]}}`
	header += "       "[:(8-len(header)%8)%8]
	wanted := string([]byte{byte(len(header)), 0, 0, 0, 0, 0, 0, 0}) + header + "\x04\x04\x04\x04\x01"
	if written.String() != wanted {
		t.Errorf("%q", written.String())
	}
}
