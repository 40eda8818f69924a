// Package packing makes an update ready to travel in the encodings that were agreed on, once, and on disk before its first
// byte is sent.
//
// What a lossy encoding leaves out of an update is added to the next one (error feedback). It counts as left out once the
// server has the update.
package packing

import (
	"math"
	"slices"

	"fedstream/client/internal/codec"
	"fedstream/client/internal/model"
	"fedstream/client/internal/pb"
	"fedstream/client/internal/store"
)

// Pack gives the update as it travels: as it was packed before, while all encodings in it may still be used. Another
// manifest for the same upload is a conflict, also where the server has come to prefer another encoding. Base are the
// entries of the model that the update started from; encodings are those that were agreed on, best first.
func Pack(
	kept *store.Store, update *store.Update, base []model.Entry, encodings []pb.Encoding, federation string,
) (*store.Packed, error) {
	if update.Packed != nil && isOf(update.Packed, encodings) {
		return update.Packed, nil
	}
	packer := packer{kept, encodings, &store.Packed{}, kept.LeftOut(federation)}
	for i, entry := range update.Entries {
		if err := packer.add(entry, base[i]); err != nil {
			return nil, err
		}
	}
	packer.carryOver()
	update.Packed = packer.packed
	return update.Packed, kept.Record(update)
}

func isOf(packed *store.Packed, encodings []pb.Encoding) bool {
	return !slices.ContainsFunc(packed.Tensors, func(parcel store.Parcel) bool {
		return parcel.Encoding != pb.Encoding_ENCODING_RAW && !slices.Contains(encodings, parcel.Encoding)
	})
}

// Delivered says that the server has admitted the update: what was left out of it is what counts from now on.
func Delivered(kept *store.Store, update *store.Update, federation string) error {
	if update.Packed == nil || len(update.Packed.LeftOut) == 0 {
		return nil
	}
	return kept.SetLeftOut(federation, update.UploadID, update.Packed.LeftOut)
}

type packer struct {
	kept      *store.Store
	encodings []pb.Encoding
	packed    *store.Packed
	leftOut   []store.Remainder // of earlier updates
}

func (p *packer) add(trained, base model.Entry) error {
	if trained.SHA256 == base.SHA256 && p.find(trained) == nil { // it is where it was, and travels not at all
		p.addRaw(trained)
		return nil
	}
	for _, encoding := range p.encodings {
		if !codec.Suits(encoding, trained) {
			continue
		}
		done, err := p.try(encoding, trained, base)
		if done || err != nil {
			return err
		}
	}
	p.addRaw(trained)
	return nil
}

// try packs a tensor in an encoding; false if it cannot.
func (p *packer) try(encoding pb.Encoding, trained, base model.Entry) (bool, error) {
	if encoding == pb.Encoding_ENCODING_RAW {
		p.addRaw(trained)
		return true, nil
	}
	values, err := p.kept.Read(trained.SHA256)
	if err != nil {
		return false, err
	}
	if !codec.IsLossy(encoding) {
		return true, p.addEncoded(encoding, trained, values)
	}
	started, err := p.kept.Read(base.SHA256)
	if err != nil {
		return false, err
	}
	return p.tryLossy(encoding, trained, codec.Floats(values), codec.Floats(started))
}

func (p *packer) tryLossy(encoding pb.Encoding, entry model.Entry, trained, started []float32) (bool, error) {
	moved, err := p.moved(entry, trained, started)
	if moved == nil || err != nil {
		return false, err
	}
	encoded := codec.EncodeMoved(encoding, moved)
	arrived := codec.DecodeMoved(encoding, started, encoded)
	for i := range moved { // what this encoding leaves out
		moved[i] -= arrived[i] - started[i]
	}
	blob, err := p.kept.Put(codec.Bytes(moved))
	if err != nil {
		return false, err
	}
	p.packed.LeftOut = append(p.packed.LeftOut, store.Remainder{Name: entry.Name, Shape: entry.Shape, Blob: blob})
	entry.SHA256 = model.Sum(codec.Bytes(arrived))
	return true, p.addEncoded(encoding, entry, encoded)
}

// moved gives how far a tensor is to be moved; nil where that is no number, which is for the server to see as it is.
func (p *packer) moved(entry model.Entry, trained, started []float32) ([]float32, error) {
	moved := make([]float32, len(trained))
	for i := range moved {
		moved[i] = trained[i] - started[i]
	}
	if before := p.find(entry); before != nil {
		left, err := p.kept.Read(before.Blob)
		if err != nil {
			return nil, err
		}
		for i, value := range codec.Floats(left) {
			moved[i] += value
		}
	}
	for _, d := range moved {
		if math.IsNaN(float64(d)) || math.IsInf(float64(d), 0) {
			return nil, nil
		}
	}
	return moved, nil
}

// find gives what was left out of a tensor of the same name and shape, if it is here whole.
func (p *packer) find(entry model.Entry) *store.Remainder {
	for _, one := range p.leftOut {
		if one.Name == entry.Name && slices.Equal(one.Shape, entry.Shape) && p.kept.Has(one.Blob) {
			return &one
		}
	}
	return nil
}

// carryOver keeps what was left out of tensors that did not travel in a lossy encoding this time.
func (p *packer) carryOver() {
	if len(p.packed.LeftOut) == 0 {
		return
	}
	for _, before := range p.leftOut {
		isSame := func(one store.Remainder) bool { return one.Name == before.Name }
		if !slices.ContainsFunc(p.packed.LeftOut, isSame) {
			p.packed.LeftOut = append(p.packed.LeftOut, before)
		}
	}
}

func (p *packer) addRaw(entry model.Entry) {
	p.packed.Tensors = append(p.packed.Tensors, store.Parcel{
		Entry: entry, Encoding: pb.Encoding_ENCODING_RAW, Blob: entry.SHA256, Size: entry.Size,
	})
}

// addEncoded keeps the bytes, in a frame if the encoding has one. Entry is what they decode to.
func (p *packer) addEncoded(encoding pb.Encoding, entry model.Entry, data []byte) error {
	if codec.IsCompressed(encoding) {
		compressed, err := codec.Compress(data)
		if err != nil {
			return err
		}
		data = compressed
	}
	blob, err := p.kept.Put(data)
	p.packed.Tensors = append(p.packed.Tensors, store.Parcel{
		Entry: entry, Encoding: encoding, Blob: blob, Size: uint64(len(data)),
	})
	return err
}
