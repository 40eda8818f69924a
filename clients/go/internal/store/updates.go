package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"fedstream/client/internal/durable"
	"fedstream/client/internal/model"
	"fedstream/client/internal/pb"
	"fedstream/client/internal/task"
)

// An Update is a finished fine-tune. Its tensors are blobs.
type Update struct {
	OfferID     string        `json:"offer_id"`
	UploadID    string        `json:"upload_id"`
	Base        model.SHA256  `json:"base"`
	Entries     []model.Entry `json:"entries"`
	NumExamples uint64        `json:"num_examples"`
	Metrics     task.Metrics  `json:"metrics"`
	Epochs      uint32        `json:"epochs"`
	Training    time.Duration `json:"training"`
	Packed      *Packed       `json:"packed,omitempty"`
}

// Packed is an update as it travels.
type Packed struct {
	Tensors []Parcel    `json:"tensors"`
	LeftOut []Remainder `json:"left_out"`
}

// A Parcel is a tensor as it travels. Entry is what it decodes to, which is what the server is to have; the blob is what
// is sent.
type Parcel struct {
	Entry    model.Entry  `json:"entry"`
	Encoding pb.Encoding  `json:"encoding"`
	Blob     model.SHA256 `json:"blob"`
	Size     uint64       `json:"size"`
}

// A Remainder is what encodings left out of how far a tensor was moved. The blob is float32.
type Remainder struct {
	Name  string       `json:"name"`
	Shape []uint64     `json:"shape"`
	Blob  model.SHA256 `json:"blob"`
}

// LeftOut are the remainders of a federation, up to and with those of one upload.
type LeftOut struct {
	Federation string      `json:"federation"`
	UploadID   string      `json:"upload_id"`
	Tensors    []Remainder `json:"tensors"`
}

func (u *Update) blobs() []model.SHA256 {
	var blobs []model.SHA256
	for _, entry := range u.Entries {
		blobs = append(blobs, entry.SHA256)
	}
	return append(blobs, u.Packed.blobs()...)
}

func (p *Packed) blobs() []model.SHA256 {
	if p == nil {
		return nil
	}
	blobs := remainderBlobs(p.LeftOut)
	for _, parcel := range p.Tensors {
		blobs = append(blobs, parcel.Blob)
	}
	return blobs
}

func remainderBlobs(remainders []Remainder) []model.SHA256 {
	var blobs []model.SHA256
	for _, remainder := range remainders {
		blobs = append(blobs, remainder.Blob)
	}
	return blobs
}

// updatePath is built of no text that the other side chose.
func (s *Store) updatePath(offerID string) string {
	return filepath.Join(s.folder, "updates", model.Sum([]byte(offerID)).String()[:32])
}

// Record makes an update count, durably. Its blobs are here already.
func (s *Store) Record(update *Update) error {
	return durable.Seal(s.updatePath(update.OfferID), update)
}

// Update gives the finished update of that offer and base, if every byte of its tensors is here; nil if there is none.
// What was packed of it counts by itself: if that is damaged, it is packed again.
func (s *Store) Update(offerID string, base model.SHA256) *Update {
	update := &Update{}
	if err := durable.Unseal(s.updatePath(offerID), update); err != nil || update.Base != base {
		return nil
	}
	for _, entry := range update.Entries {
		if !s.Has(entry.SHA256) {
			return nil
		}
	}
	for _, blob := range update.Packed.blobs() {
		if !s.Has(blob) {
			update.Packed = nil
			break
		}
	}
	return update
}

// KeepOnly forgets all updates but that of offerID, and all blobs but these, those of that update, and what was left out.
func (s *Store) KeepOnly(offerID string, entries []model.Entry) error {
	kept := map[model.SHA256]bool{}
	for _, entry := range entries {
		kept[entry.SHA256] = true
	}
	update, left := &Update{}, &LeftOut{}
	if durable.Unseal(s.updatePath(offerID), update) == nil {
		keep(kept, update.blobs())
	}
	if durable.Unseal(s.leftOutPath(), left) == nil {
		keep(kept, remainderBlobs(left.Tensors))
	}
	name := filepath.Base(s.updatePath(offerID))
	err := removeBut(filepath.Join(s.folder, "updates"), func(file string) bool { return file == name })
	return errors.Join(err, s.keepBlobs(kept))
}

func keep(kept map[model.SHA256]bool, blobs []model.SHA256) {
	for _, blob := range blobs {
		kept[blob] = true
	}
}

func (s *Store) leftOutPath() string { return filepath.Join(s.folder, "left_out") }

// LeftOut gives what was left out so far in that federation.
func (s *Store) LeftOut(federation string) []Remainder {
	left := &LeftOut{}
	if err := durable.Unseal(s.leftOutPath(), left); err != nil || left.Federation != federation {
		return nil
	}
	return left.Tensors
}

// SetLeftOut replaces it, durably, with what was left out of an upload that the server has.
func (s *Store) SetLeftOut(federation, uploadID string, tensors []Remainder) error {
	return durable.Seal(s.leftOutPath(), &LeftOut{federation, uploadID, tensors})
}

// Unsettled gives the updates of which something was left out, and of which nobody has said yet that the server has
// them.
func (s *Store) Unsettled() ([]*Update, error) {
	files, err := os.ReadDir(filepath.Join(s.folder, "updates"))
	if err != nil {
		return nil, err
	}
	left := &LeftOut{}
	if durable.Unseal(s.leftOutPath(), left) != nil { // there is none, or it is damaged
		left = &LeftOut{}
	}
	var found []*Update
	for _, file := range files {
		update := &Update{}
		if durable.Unseal(filepath.Join(s.folder, "updates", file.Name()), update) != nil || update.Packed == nil {
			continue
		}
		if len(update.Packed.LeftOut) > 0 && update.UploadID != "" && update.UploadID != left.UploadID {
			found = append(found, update)
		}
	}
	return found, nil
}

// Forget removes everything that the next round would have needed: the federation is over.
func (s *Store) Forget() error {
	err := os.Remove(s.leftOutPath())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, s.KeepOnly("", nil))
}
