package packing_test

import (
	"math"
	"slices"
	"testing"

	"fedstream/client/internal/codec"
	"fedstream/client/internal/model"
	"fedstream/client/internal/packing"
	"fedstream/client/internal/pb"
	"fedstream/client/internal/store"
	"fedstream/client/internal/store/storetest"
)

const num = 1_024

var int8First = []pb.Encoding{pb.Encoding_ENCODING_INT8, pb.Encoding_ENCODING_RAW}

// keep puts a kernel of num numbers and a bias of one, and gives their entries.
func keep(t *testing.T, kept *store.Store, kernel []float32) []model.Entry {
	t.Helper()
	var entries []model.Entry
	for name, values := range map[string][]float32{"kernel": kernel, "bias": kernel[:1]} {
		data := codec.Bytes(values)
		if _, err := kept.Put(data); err != nil {
			t.Fatal(err)
		}
		spec := model.Spec{Name: name, DType: "F32", Shape: []uint64{uint64(len(values))}}
		entries = append(entries, model.EntryOf(spec, data))
	}
	slices.SortFunc(entries, func(a, b model.Entry) int { return int(b.Size) - int(a.Size) })
	return entries
}

func curve(scale float64) []float32 {
	values := make([]float32, num)
	for i := range values {
		values[i] = float32(scale * math.Sin(float64(i)))
	}
	return values
}

func pack(
	t *testing.T, kept *store.Store, base, trained []model.Entry, encodings []pb.Encoding,
) (*store.Update, *store.Packed) {
	t.Helper()
	update := &store.Update{OfferID: "o", Entries: trained}
	packed, err := packing.Pack(kept, update, base, encodings, "f")
	if err != nil {
		t.Fatal(err)
	}
	return update, packed
}

// arrives gives what a server makes of a packed kernel.
func arrives(t *testing.T, kept *store.Store, packed *store.Packed, base []float32) []float32 {
	t.Helper()
	encoded, err := kept.Read(packed.Tensors[0].Blob)
	if err != nil {
		t.Fatal(err)
	}
	values := codec.DecodeMoved(packed.Tensors[0].Encoding, base, encoded)
	if model.Sum(codec.Bytes(values)) != packed.Tensors[0].Entry.SHA256 {
		t.Error("the digest is not of what the bytes decode to")
	}
	return values
}

func TestFirstEncodingThatSuitsATensorIsUsed(t *testing.T) {
	kept := storetest.Open(t, t.TempDir())
	base, trained := keep(t, kept, curve(1)), keep(t, kept, curve(1.1))
	for _, one := range []struct {
		agreed []pb.Encoding
		wanted [2]pb.Encoding
	}{
		{nil, [2]pb.Encoding{pb.Encoding_ENCODING_RAW, pb.Encoding_ENCODING_RAW}},
		{int8First, [2]pb.Encoding{pb.Encoding_ENCODING_INT8, pb.Encoding_ENCODING_RAW}},
		{[]pb.Encoding{pb.Encoding_ENCODING_BFLOAT16, pb.Encoding_ENCODING_ZSTD}, [2]pb.Encoding{pb.Encoding_ENCODING_BFLOAT16, pb.Encoding_ENCODING_ZSTD}},
	} {
		trained[1].SHA256 = model.Sum(codec.Bytes(curve(1.1)[:1])) // sin(0) is 0 in both
		base[1].SHA256 = model.SHA256{}
		_, packed := pack(t, kept, base, trained, one.agreed)
		if got := [2]pb.Encoding{packed.Tensors[0].Encoding, packed.Tensors[1].Encoding}; got != one.wanted {
			t.Errorf("%v of %v", got, one.agreed)
		}
	}
}

func TestWhatIsLeftOutOfAnUpdateGoesIntoTheNext(t *testing.T) {
	kept := storetest.Open(t, t.TempDir())
	started := make([]float32, num)
	base, trained := keep(t, kept, started), keep(t, kept, curve(1))
	total := make([]float64, num)
	const rounds = 50
	for range rounds { // the same step each round: what arrives in all must be that step times the rounds
		update, packed := pack(t, kept, base, trained, int8First)
		for i, value := range arrives(t, kept, packed, started) {
			total[i] += float64(value)
		}
		if err := packing.Delivered(kept, update, "f"); err != nil {
			t.Fatal(err)
		}
	}
	for i, value := range curve(1) {
		if off := math.Abs(total[i] - rounds*float64(value)); off > 1.0/127 {
			t.Fatalf("%v of %v arrived", total[i], rounds*value)
		}
	}
}

func TestWhatWasLeftOutOfAnUpdateThatWasNotAdmittedIsNot(t *testing.T) {
	kept := storetest.Open(t, t.TempDir())
	started := make([]float32, num)
	base, trained := keep(t, kept, started), keep(t, kept, curve(1))
	_, first := pack(t, kept, base, trained, int8First)
	_, second := pack(t, kept, base, trained, int8First)
	if first.Tensors[0].Blob != second.Tensors[0].Blob || len(kept.LeftOut("f")) > 0 {
		t.Error("something of it counts")
	}
}

func TestUpdateIsPackedOnceWhileItsEncodingsMayBeUsed(t *testing.T) {
	folder := t.TempDir()
	kept := storetest.Open(t, folder)
	base, trained := keep(t, kept, curve(1)), keep(t, kept, curve(2))
	_, packed := pack(t, kept, base, trained, int8First)
	kept.Close()
	next := storetest.Open(t, folder)
	update := next.Update("o", model.SHA256{})
	bfloat16First := append([]pb.Encoding{pb.Encoding_ENCODING_BFLOAT16}, int8First...)
	for _, encodings := range [][]pb.Encoding{int8First, bfloat16First} {
		again, err := packing.Pack(next, update, base, encodings, "f")
		if err != nil || again != update.Packed || again.Tensors[0].Blob != packed.Tensors[0].Blob {
			t.Errorf("packed again for %v: %v", encodings, err)
		}
	}
	raw, err := packing.Pack(next, update, base, nil, "f")
	if err != nil || raw.Tensors[0].Encoding != pb.Encoding_ENCODING_RAW {
		t.Errorf("still packed in an encoding that may not be used any more: %v", err)
	}
	if again, err := packing.Pack(next, update, base, int8First, "f"); err != nil || again != raw {
		t.Errorf("packed again, though raw may always be used: %v", err)
	}
}

func TestTensorThatMovedBeyondAllNumbersTravelsRaw(t *testing.T) {
	kept := storetest.Open(t, t.TempDir())
	far := curve(1)
	far[5] = float32(math.Inf(1))
	_, packed := pack(t, kept, keep(t, kept, curve(1)), keep(t, kept, far), int8First)
	if packed.Tensors[0].Encoding != pb.Encoding_ENCODING_RAW || len(packed.LeftOut) > 0 {
		t.Errorf("travels in %v", packed.Tensors[0].Encoding)
	}
}
