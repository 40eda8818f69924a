// Package codec has the encodings in which a tensor of an update may travel. A lossy one carries what the tensor was moved
// by, element by element: all arithmetic is float32, each operation rounded by itself.
package codec

import (
	"encoding/binary"
	"maps"
	"math"
	"slices"

	"fedstream/client/internal/model"
	"fedstream/client/internal/pb"
)

const (
	blockElements = 256
	largestCode   = 127
	// Smaller tensors are few bytes, and each element of them is of a whole channel.
	smallestLossy = 1024
)

var words = map[string]pb.Encoding{
	"raw":           pb.Encoding_ENCODING_RAW,
	"zstd":          pb.Encoding_ENCODING_ZSTD,
	"bfloat16":      pb.Encoding_ENCODING_BFLOAT16,
	"bfloat16+zstd": pb.Encoding_ENCODING_BFLOAT16_ZSTD,
	"int8":          pb.Encoding_ENCODING_INT8,
	"int8+zstd":     pb.Encoding_ENCODING_INT8_ZSTD,
}

// inner says what is in a zstd frame.
var inner = map[pb.Encoding]pb.Encoding{
	pb.Encoding_ENCODING_ZSTD:          pb.Encoding_ENCODING_RAW,
	pb.Encoding_ENCODING_BFLOAT16_ZSTD: pb.Encoding_ENCODING_BFLOAT16,
	pb.Encoding_ENCODING_INT8_ZSTD:     pb.Encoding_ENCODING_INT8,
}

// Words are the names of encodings as operators write them.
func Words() []string { return slices.Sorted(maps.Keys(words)) }

// ByWord gives the encoding of that name.
func ByWord(word string) (pb.Encoding, bool) {
	encoding, known := words[word]
	return encoding, known
}

// Word gives an encoding's name; empty for one that is not known here.
func Word(encoding pb.Encoding) string {
	for word, known := range words {
		if known == encoding {
			return word
		}
	}
	return ""
}

// All are the encodings that are known here.
func All() []pb.Encoding { return slices.Sorted(maps.Values(words)) }

// IsCompressed says whether a zstd frame is around it.
func IsCompressed(encoding pb.Encoding) bool {
	_, compressed := inner[encoding]
	return compressed
}

// Inner gives the encoding without its zstd frame.
func Inner(encoding pb.Encoding) pb.Encoding {
	if in, compressed := inner[encoding]; compressed {
		return in
	}
	return encoding
}

// IsLossy says whether the values that arrive are not quite those that were trained.
func IsLossy(encoding pb.Encoding) bool { return Inner(encoding) != pb.Encoding_ENCODING_RAW }

// Suits says whether a sender is to use an encoding for a tensor.
func Suits(encoding pb.Encoding, tensor model.Entry) bool {
	switch {
	case encoding == pb.Encoding_ENCODING_RAW:
		return true
	case Word(encoding) == "":
		return false
	case IsLossy(encoding):
		return tensor.DType == "F32" && tensor.Size >= 4*smallestLossy
	default:
		return tensor.Size > 0
	}
}

// Fits says whether a tensor can have so many bytes in an encoding.
func Fits(encoding pb.Encoding, tensor model.Entry, size uint64) bool {
	if Word(encoding) == "" || IsLossy(encoding) && tensor.DType != "F32" {
		return false
	}
	raw := tensor.Size
	elements := tensor.Size / model.ItemBytes[tensor.DType]
	switch Inner(encoding) {
	case pb.Encoding_ENCODING_BFLOAT16:
		raw = 2 * elements
	case pb.Encoding_ENCODING_INT8:
		raw = 4*blocks(elements) + elements
	}
	if IsCompressed(encoding) {
		return size >= 1 && size <= raw+raw/128+512
	}
	return size == raw
}

func blocks(elements uint64) uint64 { return (elements + blockElements - 1) / blockElements }

// EncodeMoved writes what a tensor was moved by, all of it finite, in the lossy encoding without its frame.
func EncodeMoved(encoding pb.Encoding, moved []float32) []byte {
	if Inner(encoding) == pb.Encoding_ENCODING_BFLOAT16 {
		return asBFloat16(moved)
	}
	return asInt8(moved)
}

// DecodeMoved gives the values that encoded bytes, without their frame, decode to from a base.
func DecodeMoved(encoding pb.Encoding, base []float32, encoded []byte) []float32 {
	if Inner(encoding) == pb.Encoding_ENCODING_BFLOAT16 {
		return fromBFloat16(base, encoded)
	}
	return fromInt8(base, encoded)
}

func asBFloat16(moved []float32) []byte {
	encoded := make([]byte, 0, 2*len(moved))
	for _, d := range moved {
		bits := math.Float32bits(d)
		encoded = binary.LittleEndian.AppendUint16(encoded, uint16((bits+0x7FFF+bits>>16&1)>>16))
	}
	return encoded
}

func fromBFloat16(base []float32, encoded []byte) []float32 {
	values := make([]float32, len(base))
	for i := range values {
		d := math.Float32frombits(uint32(binary.LittleEndian.Uint16(encoded[2*i:])) << 16)
		values[i] = base[i] + d
	}
	return values
}

func asInt8(moved []float32) []byte {
	var scales []float32
	var encoded []byte
	for block := range slices.Chunk(moved, blockElements) {
		scale := largest(block) / largestCode
		scales = append(scales, scale)
		encoded = binary.LittleEndian.AppendUint32(encoded, math.Float32bits(scale))
	}
	for i, d := range moved {
		encoded = append(encoded, byte(code(d, scales[i/blockElements])))
	}
	return encoded
}

func largest(block []float32) float32 {
	var most float32
	for _, d := range block {
		most = max(most, float32(math.Abs(float64(d))))
	}
	return most
}

func code(d, scale float32) int8 {
	if scale == 0 { // also of a block that is next to 0
		return 0
	}
	quotient := d / scale
	return int8(min(max(math.RoundToEven(float64(quotient)), -largestCode), largestCode))
}

func fromInt8(base []float32, encoded []byte) []float32 {
	values := make([]float32, len(base))
	codes := encoded[4*blocks(uint64(len(base))):]
	for i := range values {
		scale := math.Float32frombits(binary.LittleEndian.Uint32(encoded[4*(i/blockElements):]))
		// The conversion rounds the product: without it, a compiler may fuse it with the addition.
		values[i] = base[i] + float32(scale*float32(int8(codes[i])))
	}
	return values
}
