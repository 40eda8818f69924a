package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"fedstream/client/internal/model"
	"fedstream/client/internal/store"
	"fedstream/client/internal/store/storetest"
)

func put(t *testing.T, kept *store.Store, text string) model.Entry {
	t.Helper()
	if _, err := kept.Put([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return model.EntryOf(model.Spec{Name: text, DType: "U8", Shape: []uint64{uint64(len(text))}}, []byte(text))
}

func record(t *testing.T, kept *store.Store, offerID string, entries ...model.Entry) {
	t.Helper()
	if err := kept.Record(&store.Update{OfferID: offerID, Entries: entries, Epochs: 3}); err != nil {
		t.Fatal(err)
	}
}

func blob(folder string, entry model.Entry) string {
	return filepath.Join(folder, "blobs", entry.SHA256.String())
}

func TestUpdateIsFoundByTheNextProcessForItsOfferAndBaseAlone(t *testing.T) {
	folder := t.TempDir()
	first := storetest.Open(t, folder)
	record(t, first, "offer/../1", put(t, first, "a"))
	first.Close()
	next := storetest.Open(t, folder)
	if update := next.Update("offer/../1", model.SHA256{}); update == nil || update.Epochs != 3 {
		t.Errorf("found %v", update)
	}
	if next.Update("offer/../1", model.Sum(nil)) != nil || next.Update("offer 2", model.SHA256{}) != nil {
		t.Error("found for another base or offer")
	}
}

func TestUpdateOfWhichAnythingIsDamagedDoesNotCount(t *testing.T) {
	for _, damage := range []string{"blob", "record"} {
		folder := t.TempDir()
		first := storetest.Open(t, folder)
		entry := put(t, first, "a")
		record(t, first, "o", entry)
		first.Close()
		file := blob(folder, entry)
		if damage == "record" {
			files, _ := filepath.Glob(filepath.Join(folder, "updates", "*"))
			file = files[0]
		}
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		content[len(content)-1] ^= 1
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if storetest.Open(t, folder).Update("o", model.SHA256{}) != nil {
			t.Errorf("counts with a damaged %s", damage)
		}
	}
}

func TestWhatNoOfferNeedsAnyMoreGoes(t *testing.T) {
	folder := t.TempDir()
	kept := storetest.Open(t, folder)
	old, now, base, left := put(t, kept, "old"), put(t, kept, "now"), put(t, kept, "base"), put(t, kept, "left")
	record(t, kept, "old", old)
	record(t, kept, "now", now)
	if err := kept.SetLeftOut("f", "u", []store.Remainder{{Name: "x", Blob: left.SHA256}}); err != nil {
		t.Fatal(err)
	}
	if err := kept.KeepOnly("now", []model.Entry{base}); err != nil {
		t.Fatal(err)
	}
	for entry, isKept := range map[string]bool{old.Name: false, now.Name: true, base.Name: true, left.Name: true} {
		if kept.Has(model.Sum([]byte(entry))) != isKept {
			t.Errorf("%s is kept: %v", entry, !isKept)
		}
	}
	if kept.Update("old", model.SHA256{}) != nil || kept.Update("now", model.SHA256{}) == nil {
		t.Error("the wrong update is kept")
	}
	if err := kept.Forget(); err != nil || kept.LeftOut("f") != nil || kept.Has(now.SHA256) {
		t.Errorf("something is left: %v", err)
	}
}

func TestWhatWasLeftOutInAnotherFederationDoesNotCount(t *testing.T) {
	kept := storetest.Open(t, t.TempDir())
	if err := kept.SetLeftOut("one", "u", []store.Remainder{{Name: "x"}}); err != nil {
		t.Fatal(err)
	}
	if len(kept.LeftOut("one")) != 1 || kept.LeftOut("two") != nil {
		t.Error("what was left out is not by federation")
	}
}

func TestSecondProcessIsKeptOut(t *testing.T) {
	folder := t.TempDir()
	storetest.Open(t, folder)
	if _, err := store.Open(folder); !errors.Is(err, store.ErrInUse) {
		t.Errorf("opened twice: %v", err)
	}
}

func TestFilesAreTheirOwnersAlone(t *testing.T) {
	folder := t.TempDir()
	kept := storetest.Open(t, folder)
	entry := put(t, kept, "a")
	facts, err := os.Stat(blob(folder, entry))
	if err != nil || facts.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", facts, err)
	}
}
