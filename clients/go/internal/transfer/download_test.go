package transfer_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"fedstream/client/internal/fault"
	"fedstream/client/internal/link"
	"fedstream/client/internal/model"
	"fedstream/client/internal/store"
	"fedstream/client/internal/store/storetest"
	"fedstream/client/internal/transfer"
)

var published = makeWeights(1)

func fetch(t *testing.T, connection *link.Connection, kept *store.Store) error {
	t.Helper()
	download := transfer.Download{
		Connection: connection, Store: kept, Schema: published.schema, Patience: patience, Log: quiet,
		ChunkBytes: func() int { return 1 << 20 }, OnBytes: func(done, total uint64) {},
	}
	entries, err := download.Fetch(t.Context(), model.DigestOf(published.entries).SHA256)
	for i, entry := range entries {
		if values, wrong := kept.Read(entry.SHA256); wrong != nil || !bytes.Equal(values, published.values[i]) {
			t.Errorf("%s is %x, %v", entry.Name, values, wrong)
		}
	}
	return err
}

// offsets are where each stream began, and of which tensors.
func offsets(s *server) (all []string) {
	for _, request := range s.asked {
		all = append(all, fmt.Sprint(request.GetTensors(), request.GetReadOffset()))
	}
	return all
}

func TestDownloadCutAnywhereGoesOnThere(t *testing.T) {
	for cut := range 29 {
		server := newServer(published)
		server.sendOnly = cut
		if err := fetch(t, server.serve(t), storetest.Open(t, t.TempDir())); err != nil {
			t.Fatal(err)
		}
		arrived := 0
		for _, request := range server.asked {
			size := 0
			for _, index := range request.GetTensors() {
				size += len(published.values[index])
			}
			arrived += size - int(request.GetReadOffset())
		}
		wanted := 28
		if cut < 28 {
			wanted += 28 - cut // the second stream begins where the first was cut
		}
		if arrived != wanted {
			t.Errorf("cut after %d bytes, %d were asked for: %v", cut, arrived, offsets(server))
		}
	}
}

func TestBytesThatAKilledProcessLeftAreNotAskedForAgain(t *testing.T) {
	kept, server := storetest.Open(t, t.TempDir()), newServer(published)
	partial, err := kept.Partial(published.entries[0].SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if err := partial.Append(published.values[0][:7]); err != nil {
		t.Fatal(err)
	}
	partial.Close()
	if err := fetch(t, server.serve(t), kept); err != nil || !reflect.DeepEqual(offsets(server), []string{"[0 1 2] 7"}) {
		t.Errorf("%v, asked for %v", err, offsets(server))
	}
}

func TestTensorThatWasDamagedOnDiskIsDownloadedAgainAndNoOther(t *testing.T) {
	folder := t.TempDir()
	first := storetest.Open(t, folder)
	if err := fetch(t, newServer(published).serve(t), first); err != nil {
		t.Fatal(err)
	}
	first.Close()
	if err := os.WriteFile(filepath.Join(folder, "blobs", published.entries[2].SHA256.String()), []byte("rot"), 0o600); err != nil {
		t.Fatal(err)
	}
	server := newServer(published)
	if err := fetch(t, server.serve(t), storetest.Open(t, folder)); err != nil || !reflect.DeepEqual(offsets(server), []string{"[2] 0"}) {
		t.Errorf("%v, asked for %v", err, offsets(server))
	}
}

func TestWhatDoesNotMatchItsDigestIsThrownAwayAndAskedForAgain(t *testing.T) {
	server := newServer(published)
	server.spoilOnce = true
	if err := fetch(t, server.serve(t), storetest.Open(t, t.TempDir())); err != nil || len(server.asked) != 2 {
		t.Errorf("%v, asked for %v", err, offsets(server))
	}
}

func TestMoreThanThereIsIsThrownAway(t *testing.T) {
	kept := storetest.Open(t, t.TempDir())
	partial, err := kept.Partial(published.entries[0].SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if err := partial.Append(make([]byte, 40)); err != nil {
		t.Fatal(err)
	}
	partial.Close()
	if err := fetch(t, newServer(published).serve(t), kept); err != nil {
		t.Error(err)
	}
}

func TestModelThatIsNotPublishedIsAnErrorAtOnce(t *testing.T) {
	server := newServer(published)
	server.failures["GetManifest"] = []string{"UNKNOWN_MODEL"}
	if err := fetch(t, server.serve(t), storetest.Open(t, t.TempDir())); fault.Refused(err, fault.UnknownModel) == nil {
		t.Error(err)
	}
}

func TestManifestOfAnotherModelIsRefused(t *testing.T) {
	server := newServer(makeWeights(9))
	err := fetch(t, server.serve(t), storetest.Open(t, t.TempDir()))
	if err == nil || fault.IsTrouble(err) || len(server.asked) > 0 || len(server.calls) != 4 {
		t.Errorf("%v after %v", err, server.calls)
	}
}
