// Package storetest opens stores for tests.
package storetest

import (
	"testing"

	"fedstream/client/internal/store"
)

// Open opens the store in a folder, until the end of the test.
func Open(t *testing.T, folder string) *store.Store {
	t.Helper()
	kept, err := store.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kept.Close() })
	return kept
}
