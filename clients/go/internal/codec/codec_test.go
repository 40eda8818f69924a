package codec

import (
	"bytes"
	"testing"

	"github.com/klauspost/compress/zstd"

	"fedstream/client/internal/model"
	"fedstream/client/internal/pb"
	"fedstream/client/internal/vectors"
)

// unpack takes a frame as a server does. Only tests need it: models come raw.
func unpack(t *testing.T, frame []byte) []byte {
	t.Helper()
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderMaxWindow(8<<20), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	data, err := decoder.DecodeAll(frame, nil)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Cases without values are for whoever reads updates, which only a server does.
func TestTensorsAreWrittenAndReadAsTheVectorsSay(t *testing.T) {
	for _, vector := range vectors.Read(t, "encodings.txt") {
		if !vector.Has("values") {
			continue
		}
		t.Run(vector.Text(t, "case"), func(t *testing.T) {
			encoding := pb.Encoding(pb.Encoding_value[vector.Text(t, "encoding")])
			encoded, base := vector.Bytes(t, "encoded"), Floats(vector.Bytes(t, "base"))
			if IsCompressed(encoding) {
				encoded = unpack(t, encoded)
			}
			values := encoded
			if IsLossy(encoding) {
				values = Bytes(DecodeMoved(encoding, base, encoded))
			}
			if !bytes.Equal(values, vector.Bytes(t, "values")) || model.Sum(values).String() != vector.Text(t, "sha256") {
				t.Errorf("decoded to %x", values)
			}
			if !vector.Has("moved") {
				return
			}
			if got := EncodeMoved(encoding, Floats(vector.Bytes(t, "moved"))); !bytes.Equal(got, encoded) {
				t.Errorf("encoded as %x, not %x", got, encoded)
			}
		})
	}
}

func TestWhatIsCompressedComesOutAgain(t *testing.T) {
	for _, data := range [][]byte{{1}, make([]byte, 1<<20), bytes.Repeat([]byte("weights"), 12_345)} {
		frame, err := Compress(data)
		if err != nil {
			t.Fatal(err)
		}
		entry := model.Entry{DType: "U8", Size: uint64(len(data))}
		if !bytes.Equal(unpack(t, frame), data) || !Fits(pb.Encoding_ENCODING_ZSTD, entry, uint64(len(frame))) {
			t.Errorf("%d bytes in a frame of %d", len(data), len(frame))
		}
		var header zstd.Header
		if err := header.Decode(frame); err != nil || header.WindowSize > 8<<20 || header.DictionaryID != 0 {
			t.Errorf("the frame is %+v, %v", header, err)
		}
	}
}

func TestLossyEncodingsSuitLargeFloatsAlone(t *testing.T) {
	large := model.Entry{DType: "F32", Size: 4_096}
	for _, unfit := range []model.Entry{{DType: "F32", Size: 4_092}, {DType: "F64", Size: 1 << 20}} {
		if Suits(pb.Encoding_ENCODING_INT8, unfit) || !Suits(pb.Encoding_ENCODING_INT8, large) {
			t.Errorf("%+v and %+v", unfit, large)
		}
	}
	if Suits(pb.Encoding_ENCODING_ZSTD, model.Entry{DType: "F32"}) || Suits(pb.Encoding(99), large) {
		t.Error("nothing to compress is compressed, or an unknown encoding used")
	}
}
