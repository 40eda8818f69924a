package transfer_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"fedstream/client/internal/fault"
	"fedstream/client/internal/pb"
	"fedstream/client/internal/store"
	"fedstream/client/internal/store/storetest"
	"fedstream/client/internal/transfer"
)

var trained = func() weights {
	made := makeWeights(1)
	other := makeWeights(50)
	made.values[2], made.entries[2] = other.values[2], other.entries[2]
	made.values[0], made.entries[0] = other.values[0], other.entries[0]
	return made
}()

func upload(t *testing.T, s *server, wasSent bool) (string, error) {
	t.Helper()
	kept := storetest.Open(t, t.TempDir())
	packed := &store.Packed{}
	for i, entry := range trained.entries {
		if _, err := kept.Put(trained.values[i]); err != nil {
			t.Fatal(err)
		}
		packed.Tensors = append(packed.Tensors, store.Parcel{Entry: entry, Encoding: pb.Encoding_ENCODING_RAW, Blob: entry.SHA256, Size: entry.Size})
	}
	sending := transfer.Upload{
		Connection: s.serve(t), Store: kept, Patience: patience, Log: quiet, UploadID: "u",
		Update: &store.Update{Entries: trained.entries, NumExamples: 3}, WasSent: wasSent,
		Terms:   func() transfer.Terms { return transfer.Terms{MaxChunkBytes: 3, WindowBytes: 8} },
		Pack:    func([]pb.Encoding) (*store.Packed, error) { return packed, nil },
		Repair:  func() error { return nil },
		OnBytes: func(done, total uint64) {},
	}
	return sending.Run(t.Context())
}

func arrived(s *server) bool {
	return s.finished && bytes.Equal(s.body, append(bytes.Clone(trained.values[0]), trained.values[2]...))
}

func TestUploadCutAnywhereGoesOnWhereItWas(t *testing.T) {
	for cut := range 29 {
		server := newServer(published)
		server.takeOnly, server.answerEvery = cut, 4 // half the window, as a server may
		if quarantined, err := upload(t, server, false); err != nil || quarantined != "" || !arrived(server) {
			t.Fatalf("cut after %d bytes: %q, %v, %x", cut, quarantined, err, server.body)
		}
		if server.ahead > 8 {
			t.Errorf("%d bytes were under way", server.ahead)
		}
		if cut < 28 && !slices.Contains(server.calls, "GetUploadStatus") {
			t.Errorf("resumed without asking how far the server is: %v", server.calls)
		}
	}
}

func TestUploadKeepsTheWindowThatTheServerSaysOfItAlsoAfterACut(t *testing.T) {
	server := newServer(published)
	server.window, server.answerEvery, server.takeOnly = 4, 2, 7
	if quarantined, err := upload(t, server, false); err != nil || quarantined != "" || !arrived(server) {
		t.Fatalf("%q, %v, %x", quarantined, err, server.body)
	}
	if server.ahead > 4 || !slices.Contains(server.calls, "GetUploadStatus") {
		t.Errorf("%d bytes were under way in %v", server.ahead, server.calls)
	}
}

func TestUploadGoesOnThroughWhatTheContractSaysIsToBeTriedAgain(t *testing.T) {
	for call, reasons := range map[string][]string{
		"PutManifest":     {"CUT"},
		"WriteChunks":     {"CUT", "WRONG_OFFSET", "CHECKSUM_MISMATCH", "SUPERSEDED", "MANIFEST_REQUIRED"},
		"FinishUpload":    {"CUT", "BODY_INCOMPLETE", "DIGEST_MISMATCH"},
		"GetUploadStatus": {"CUT"},
	} {
		for _, reason := range reasons {
			server := newServer(published)
			server.failures[call] = []string{reason}
			if _, err := upload(t, server, call == "GetUploadStatus"); err != nil || !arrived(server) {
				t.Errorf("%s after %s of %s", err, reason, call)
			}
		}
	}
}

func TestUploadThatIsNotWantedIsDropped(t *testing.T) {
	for _, reason := range []string{"ROUND_CLOSED", "UNKNOWN_UPLOAD"} {
		server := newServer(published)
		server.failures["PutManifest"] = []string{reason}
		_, err := upload(t, server, false)
		var unwanted *transfer.Unwanted
		if !errors.As(err, &unwanted) || len(server.calls) != 1 {
			t.Errorf("%v after %v", err, server.calls)
		}
	}
}

func TestUploadEndsWithWhatIsNotToBeTriedAgain(t *testing.T) {
	for _, reason := range []string{"INVALID_MANIFEST", "SCHEMA_MISMATCH", "BODY_TOO_LONG", "OF_A_LATER_VERSION"} {
		server := newServer(published)
		server.failures["WriteChunks"] = []string{reason}
		if _, err := upload(t, server, false); fault.Refused(err, reason) == nil {
			t.Errorf("%v after %s", err, reason)
		}
	}
	server := newServer(published)
	server.failures["PutManifest"] = []string{"MANIFEST_CONFLICT"}
	if _, err := upload(t, server, false); fault.Refused(err, "MANIFEST_CONFLICT") == nil {
		t.Errorf("%v after MANIFEST_CONFLICT", err)
	}
	server = newServer(published)
	server.failures["FinishUpload"] = slices.Repeat([]string{"DIGEST_MISMATCH"}, 9)
	if _, err := upload(t, server, false); fault.Refused(err, fault.DigestMismatch) == nil || len(server.failures["FinishUpload"]) != 5 {
		t.Errorf("%v, and %d more would have come", err, len(server.failures["FinishUpload"]))
	}
}

func TestSmallerChunksAreSentToWhoeverTakesNoOthers(t *testing.T) {
	server := newServer(published)
	server.mostChunk = 1
	if _, err := upload(t, server, false); err != nil || !arrived(server) {
		t.Error(err)
	}
}

func TestCallsWithoutChunksAreNotTriedAgainForChunksThatAreTooLarge(t *testing.T) {
	for _, call := range []string{"PutManifest", "GetUploadStatus", "FinishUpload"} {
		server := newServer(published)
		server.failures[call] = slices.Repeat([]string{fault.ChunkTooLarge}, 9)
		_, err := upload(t, server, call == "GetUploadStatus")
		if fault.Refused(err, fault.ChunkTooLarge) == nil || len(server.failures[call]) != 8 {
			t.Errorf("%v, and %d more would have come from %s", err, len(server.failures[call]), call)
		}
	}
}

func TestUpdateThatAnEarlierProcessSentWholeIsNotSentAgain(t *testing.T) {
	server := newServer(published)
	server.hasPut, server.finished = true, true
	if _, err := upload(t, server, true); err != nil || !slices.Equal(server.calls, []string{"GetUploadStatus", "FinishUpload"}) {
		t.Errorf("%v after %v", err, server.calls)
	}
}
