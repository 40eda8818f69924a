package wire

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"fedstream/client/internal/codec"
	"fedstream/client/internal/fault"
	"fedstream/client/internal/limits"
	"fedstream/client/internal/model"
	"fedstream/client/internal/pb"
)

var toWire = map[string]pb.DataType{
	"BOOL": pb.DataType_DATA_TYPE_BOOL,
	"I8":   pb.DataType_DATA_TYPE_INT8, "I16": pb.DataType_DATA_TYPE_INT16,
	"I32": pb.DataType_DATA_TYPE_INT32, "I64": pb.DataType_DATA_TYPE_INT64,
	"U8": pb.DataType_DATA_TYPE_UINT8, "U16": pb.DataType_DATA_TYPE_UINT16,
	"U32": pb.DataType_DATA_TYPE_UINT32, "U64": pb.DataType_DATA_TYPE_UINT64,
	"F16": pb.DataType_DATA_TYPE_FLOAT16, "BF16": pb.DataType_DATA_TYPE_BFLOAT16,
	"F32": pb.DataType_DATA_TYPE_FLOAT32, "F64": pb.DataType_DATA_TYPE_FLOAT64,
}

var fromWire = func() map[pb.DataType]string {
	names := map[pb.DataType]string{}
	for name, dtype := range toWire {
		names[dtype] = name
	}
	return names
}()

// A Travelling is a tensor as it travels: what it decodes to, in which encoding, and in how many bytes.
type Travelling struct {
	model.Entry
	Encoding    pb.Encoding
	EncodedSize uint64
}

// ReadSpec reads a tensor of a schema. A role that is not known is that of a weight.
func ReadSpec(message *pb.TensorSpec) (model.Spec, error) {
	shape := message.GetShape()
	dtype, known := fromWire[message.GetDtype()]
	filled := make([]uint64, 0, limits.MaxAxes) // an axis of length 0 does not excuse the others
	if len(shape) <= limits.MaxAxes {
		for _, length := range shape {
			filled = append(filled, max(length, 1))
		}
	}
	size, fits := model.SizeOf(dtype, filled)
	isSound := known && fits && size <= limits.MaxModelBytes && len(shape) <= limits.MaxAxes
	if !isSound || !limits.IsTensorName(message.GetName()) {
		return model.Spec{}, fault.Malformedf(fault.InvalidManifest,
			"tensor %.80q has a name, type or shape that no tensor can have", message.GetName())
	}
	role := "weight"
	if message.GetRole() == pb.TensorRole_TENSOR_ROLE_STATISTIC {
		role = "statistic"
	}
	return model.Spec{Name: message.GetName(), DType: dtype, Shape: shape, Trainable: message.GetTrainable(), Role: role}, nil
}

// WriteSpec writes a tensor of a schema.
func WriteSpec(spec model.Spec) *pb.TensorSpec {
	role := pb.TensorRole_TENSOR_ROLE_UNSPECIFIED
	switch spec.Role {
	case "weight":
		role = pb.TensorRole_TENSOR_ROLE_WEIGHT
	case "statistic":
		role = pb.TensorRole_TENSOR_ROLE_STATISTIC
	}
	return &pb.TensorSpec{
		Name: spec.Name, Dtype: toWire[spec.DType], Shape: spec.Shape, Trainable: spec.Trainable, Role: role,
	}
}

// ReadEntry reads an entry of a manifest whose tensors may travel in these encodings, or raw alone where none is named.
func ReadEntry(message *pb.TensorEntry, allowed ...pb.Encoding) (Travelling, error) {
	spec, err := ReadSpec(message.GetSpec())
	if err != nil {
		return Travelling{}, err
	}
	digest := message.GetDigest()
	size, _ := model.SizeOf(spec.DType, spec.Shape)
	if len(digest.GetSha256()) != len(model.SHA256{}) || digest.GetSizeBytes() != size {
		return Travelling{}, fault.Malformedf(fault.InvalidManifest,
			"tensor %s has a digest that cannot be its own", spec.Name)
	}
	entry := model.Entry{
		Name: spec.Name, DType: spec.DType, Shape: spec.Shape, SHA256: model.SHA256(digest.GetSha256()), Size: size,
	}
	isAllowed := message.GetEncoding() == pb.Encoding_ENCODING_RAW
	for _, encoding := range allowed {
		isAllowed = isAllowed || encoding == message.GetEncoding()
	}
	if !isAllowed || !codec.Fits(message.GetEncoding(), entry, message.GetEncodedSizeBytes()) {
		return Travelling{}, fault.Malformedf(fault.InvalidManifest,
			"tensor %s travels in a way that was not agreed", spec.Name)
	}
	return Travelling{entry, message.GetEncoding(), message.GetEncodedSizeBytes()}, nil
}

// WriteEntry writes an entry of a manifest.
func WriteEntry(tensor Travelling) *pb.TensorEntry {
	return &pb.TensorEntry{
		Spec:             &pb.TensorSpec{Name: tensor.Name, Dtype: toWire[tensor.DType], Shape: tensor.Shape},
		Digest:           WriteDigest(model.Digest{SHA256: tensor.SHA256, Size: tensor.Size}),
		Encoding:         tensor.Encoding,
		EncodedSizeBytes: tensor.EncodedSize,
	}
}

// ReadPart reads the next entries of a published model's manifest, in which everything is raw.
func ReadPart(part *pb.ManifestPart) ([]model.Entry, error) {
	if len(part.GetEntries()) > limits.MaxTensorsPerPart {
		return nil, fault.Malformedf(fault.InvalidManifest, "a part has %d tensors", len(part.GetEntries()))
	}
	entries := make([]model.Entry, 0, len(part.GetEntries()))
	for _, message := range part.GetEntries() {
		tensor, err := ReadEntry(message)
		if err != nil {
			return nil, err
		}
		entries = append(entries, tensor.Entry)
	}
	return entries, nil
}

// CheckManifest checks that the entries are of the schema, tensor by tensor.
func CheckManifest(entries []model.Entry, schema []model.Spec) error {
	for i, spec := range schema {
		if i >= len(entries) || !entries[i].IsOf(spec) {
			return fault.Malformedf(fault.SchemaMismatch, "tensor %s is not where the schema has it", spec.Name)
		}
	}
	for _, entry := range entries[len(schema):] {
		isKnown := func(spec model.Spec) bool { return spec.Name == entry.Name }
		if slices.ContainsFunc(schema, isKnown) {
			return fault.Malformedf(fault.InvalidManifest, "tensor %s stands twice in the manifest", entry.Name)
		}
		return fault.Malformedf(fault.SchemaMismatch, "the manifest has more tensors than the schema")
	}
	return nil
}

// ManifestParts writes a manifest in parts, each within the bounds on tensors and bytes. Without tensors it is one part.
func ManifestParts(tensors []Travelling) []*pb.ManifestPart {
	parts := []*pb.ManifestPart{{}}
	size := 0
	for _, tensor := range tensors {
		entry := WriteEntry(tensor)
		last := parts[len(parts)-1]
		bytes := proto.Size(entry) + framing
		if len(last.Entries) == limits.MaxTensorsPerPart || size+bytes >= limits.MaxPartBytes {
			last, size = &pb.ManifestPart{}, 0
			parts = append(parts, last)
		}
		last.Entries = append(last.Entries, entry)
		size += bytes
	}
	return parts
}

const framing = 5 // tag and length of an entry in its part

// SchemaParts writes a schema in the messages that answer a schema query.
func SchemaParts(schema []model.Spec) []*pb.SchemaPart {
	parts := []*pb.SchemaPart{{}}
	for _, spec := range schema {
		last := parts[len(parts)-1]
		if len(last.Tensors) == limits.MaxTensorsPerPart {
			last = &pb.SchemaPart{}
			parts = append(parts, last)
		}
		last.Tensors = append(last.Tensors, WriteSpec(spec))
	}
	parts[len(parts)-1].Last = true
	return parts
}
