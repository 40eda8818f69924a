// Package safetensors writes a model as a `.safetensors` file: eight bytes of header length, a header in JSON, and the
// tensors' bytes one after another.
package safetensors

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"fedstream/client/internal/model"
)

// Write writes the tensors in the order of their entries; read gives the values of one.
func Write(to io.Writer, entries []model.Entry, read func(model.SHA256) ([]byte, error)) error {
	head, err := header(entries)
	if err != nil {
		return err
	}
	if _, err := to.Write(head); err != nil {
		return err
	}
	for _, entry := range entries {
		values, err := read(entry.SHA256)
		if err != nil {
			return err
		}
		if _, err := to.Write(values); err != nil {
			return err
		}
	}
	return nil
}

func header(entries []model.Entry) ([]byte, error) {
	var fields []string
	offset := uint64(0)
	for _, entry := range entries {
		name, err := json.Marshal(entry.Name)
		if err != nil {
			return nil, err
		}
		place := struct {
			DType   string    `json:"dtype"`
			Shape   []uint64  `json:"shape"`
			Offsets [2]uint64 `json:"data_offsets"`
		}{entry.DType, append([]uint64{}, entry.Shape...), [2]uint64{offset, offset + entry.Size}}
		value, err := json.Marshal(place)
		if err != nil {
			return nil, err
		}
		fields = append(fields, fmt.Sprintf("%s:%s", name, value))
		offset += entry.Size
	}
	text := "{" + strings.Join(fields, ",") + "}"
	text += strings.Repeat(" ", (8-len(text)%8)%8) // so that the tensors begin where any element may
	return append(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), text...), nil
}
