package durable_test

import (
	"os"
	"path/filepath"
	"testing"

	"fedstream/client/internal/durable"
)

func TestFoldersAreMadeWithThoseAboveThemForTheirOwnerAlone(t *testing.T) {
	t.Chdir(t.TempDir())
	for range 2 { // the second finds it there
		if err := durable.MakeFolder("above/below/"); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"above", filepath.Join("above", "below")} {
		facts, err := os.Stat(path)
		if err != nil || !facts.IsDir() || facts.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", path, facts, err)
		}
	}
}

func TestFolderIsNotMadeBelowAFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := durable.WriteBytes(file, nil); err != nil {
		t.Fatal(err)
	}
	if durable.MakeFolder(filepath.Join(file, "below")) == nil {
		t.Error("made")
	}
}
